"""From a request to its latents: its row is prepared, then stepped alone or with rows of other requests in one call.

Preparing draws a row's noise, encodes its pictures or prompt, and lays out its noise levels and its guidance. All the
randomness of a request is one CPU float32 generator, seeded with the request's seed and read in a fixed order: first
the augmentation noise of the conditioning pictures, then the initial latents. That is the order in which diffusers'
StableVideoDiffusionPipeline draws them, so the same seed gives the same video there and here, on any device.

Step-level batching puts rows of many requests through ONE preconditioned denoiser call.

Each row needs one evaluation at its own noise level; a guided row takes two batch slots of the call, one unconditional
and one conditional. Nothing here mixes rows, so a row's result does not depend on the batch beyond float rounding.
Nor does anything here wait for the device: a row's tensors are there already, and numbers travel as arguments of the
kernels that fill them in.

The call is preconditioned as in EDM (Karras et al. 2022) for v-prediction, with sigma_data = 1:

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))          (EDM, equation 7)

with the coefficients of the paper's appendix D: c_skip = 1 / (s^2 + 1), c_out = -s / sqrt(s^2 + 1),
c_in = 1 / sqrt(s^2 + 1), c_noise = ln(s) / 4, and the training weight (1 + s^2) / s^2. Every function of them takes one
sigma PER ROW, so rows at different noise levels share a denoiser call.

Legend: R rows, B batch slots of the call (R to 2R), P conditioning pictures, T frames, C channels; H, W pixels; h, w
latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from model.checkpoint import Checkpoint
from model.conditioning import condition
from model.denoiser import Denoiser, DenoiserInputs, apply_lora, caching
from model.errors import InvalidRequest
from model.params import Params
from model.sampling.row import BatchKey, Row, guidance_scale, guide
from model.sampling.solvers import Latents, make_schedule
from model.shapes import LatentShape, VideoShape
from model.tasks import Augmentation, TaskSpec


@dataclass(frozen=True, slots=True)
class RequestNoise:
    """Unit-variance noise, float32 on the CPU.

    Args:
        augmentation: for the conditioning pictures: [P, 3, H, W], [P, C, h, w] or empty, as the task says.
        latents: to start from.
    """

    augmentation: Float[Tensor, "..."]
    latents: Float[Tensor, "T C h w"]


def draw_noise(seed: int, task: TaskSpec, video: VideoShape, latent: LatentShape) -> RequestNoise:
    """The noise that `seed` stands for."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shapes: dict[Augmentation, tuple[int, ...]] = {
        "pixels": (len(task.pictures), 3, video.height, video.width),
        "latents": (len(task.pictures), *latent.as_tuple()[1:]),
        "none": (0,),
    }
    augmentation = torch.randn(shapes[task.augmentation], generator=generator, dtype=torch.float32)
    latents = torch.randn(latent.as_tuple(), generator=generator, dtype=torch.float32)
    return RequestNoise(augmentation, latents)


def prepare_row(checkpoint: Checkpoint, params: Params, pictures: Sequence[Image]) -> Row:
    """The row of one request, on the checkpoint's device.

    Args:
        pictures: in the order of the task's spec; RGB, already of the clip's height and width.

    Raises:
        InvalidRequest: pictures or settings that the checkpoint cannot serve (model.conditioning.condition).
    """
    entry, unet = checkpoint.entry, checkpoint.unet
    latent = params.shape.latent(checkpoint.latent_channels)
    noise = draw_noise(params.seed, entry.task, params.shape, latent)
    with torch.inference_mode():
        return Row.begin(
            BatchKey(f"{entry.name}@{entry.version}", latent, str(unet.dtype).removeprefix("torch."), params.adapter),
            solver=params.solver,
            sigmas=make_schedule(
                params.schedule,
                params.num_inference_steps,
                sigma_min=checkpoint.noise.sigma_min,
                sigma_max=checkpoint.noise.sigma_max,
                rho=checkpoint.noise.rho,
            ),
            noise=noise.latents.to(unet.device),
            conditioning=condition(checkpoint, params, pictures, noise.augmentation),
            scale=guidance_scale(entry.task.guidance, *params.guidance_range, params.num_frames),
            seed=params.seed,
            unit_start=checkpoint.noise.unit_start,
        )


def batch_size(rows: Sequence[Row]) -> int:
    """B of a denoiser call on the rows."""
    return sum(len(row.active_conditions) for row in rows)


def evaluate(denoiser: Denoiser, rows: Sequence[Row]) -> list[Latents]:
    """The ODE derivative dx/dsigma at each row's next evaluation point, guided, in one denoiser call.

    Args:
        rows: at least one, all of one BatchKey, none done.
    """
    return _evaluate(denoiser, rows)[0]


def _evaluate(denoiser: Denoiser, rows: Sequence[Row]) -> tuple[list[Latents], list[Row]]:
    """The derivatives, and the rows with the cached features for their next evaluations."""
    _set_lora(denoiser, rows)
    points = [row.request() for row in rows]
    x = torch.stack([point.x for point in points])
    sigma = torch.cat([torch.full((1,), point.sigma, device=x.device) for point in points])
    c = precondition(sigma)
    scaled = x * append_dims(c.c_in, x)
    slots = [len(row.active_conditions) for row in rows]
    row_of_slot = [index for index, count in enumerate(slots) for _ in range(count)]
    inputs = DenoiserInputs.stack(
        [scaled[index] for index in row_of_slot],
        [c.c_noise[index] for index in row_of_slot],
        [conditioning for row in rows for conditioning in row.active_conditions],
    )
    if (cached := caching(denoiser)) is not None:
        output, features = cached.run_with_cache(inputs, [row.cached_features for row in rows], slots)
        rows = [replace(row, cached_features=of_row) for row, of_row in zip(rows, features, strict=True)]
    else:
        output = denoiser(inputs)
    return list(ode_derivative(scaled, torch.stack(_guided(output, rows)), sigma)), list(rows)


def _set_lora(denoiser: Denoiser, rows: Sequence[Row]) -> None:
    """Switch the denoiser to the rows' LoRA, or to none."""
    lora = rows[0].key.lora
    if any(row.key.lora != lora for row in rows):
        raise InvalidRequest("rows of different LoRAs cannot share a call", param="lora")
    apply_lora(denoiser, lora)


def advance(denoiser: Denoiser, rows: Sequence[Row]) -> list[Row]:
    """Every row one evaluation further, by one denoiser call.

    Args:
        rows: at least one, all of one BatchKey, none done.
    """
    with torch.inference_mode():
        return [row.advanced(result) for result, row in zip(*_evaluate(denoiser, rows), strict=True)]


def _guided(output: Tensor, rows: Sequence[Row]) -> list[Tensor]:
    """The network's output of each row, its two slots combined where it is guided."""
    parts = zip(output.split([len(row.active_conditions) for row in rows]), rows, strict=True)
    return [guide(part[0], part[1], row.scale) if row.guided else part[0] for part, row in parts]


def sample(denoiser: Denoiser, row: Row, on_step: Callable[[Row], None] | None = None) -> Row:
    """The finished row. `on_step` is called after each solver step (an exception from it ends the loop)."""
    while not row.done:
        before = row.step
        (row,) = advance(denoiser, [row])
        if on_step is not None and row.step > before:
            on_step(row)
    return row


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """The four coefficients of equation 7, one value a row."""

    c_skip: Float[Tensor, " B"]
    c_out: Float[Tensor, " B"]
    c_in: Float[Tensor, " B"]
    c_noise: Float[Tensor, " B"]


def precondition(sigma: Float[Tensor, " B"]) -> Preconditioning:
    """The coefficients at each row's noise level (sigma > 0)."""
    variance = sigma.square() + 1
    c_in = variance.rsqrt()
    return Preconditioning(c_skip=1 / variance, c_out=-sigma * c_in, c_in=c_in, c_noise=0.25 * sigma.log())


def loss_weight(sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Weight of the squared error of D at each row's noise level: 1 / c_out^2, so F is trained at unit weight."""
    return (1 + sigma.square()) / sigma.square()


def ode_derivative(
    scaled: Float[Tensor, "B ..."], output: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"]
) -> Float[Tensor, "B ..."]:
    """dx/dsigma = (x - D(x; sigma)) / sigma of the probability-flow ODE (EDM, equation 3), row by row.

    With this preconditioning it equals c_in (sigma c_in x + F). Computed so, nothing cancels: at small sigma, x and D
    agree in nearly every digit, and dividing their difference by sigma would leave noise.

    Args:
        scaled: c_in x, the network's input.
        output: F, its output.
    """
    c_in = append_dims((sigma.square() + 1).rsqrt(), scaled)
    return (append_dims(sigma, scaled) * scaled).add_(output).mul_(c_in)


def append_dims(coefficient: Float[Tensor, " B"], like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """The coefficient shaped to multiply `like` row by row."""
    return torch.reshape(coefficient, (-1,) + (1,) * (like.ndim - 1))

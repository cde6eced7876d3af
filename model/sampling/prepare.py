"""A request becomes a row: draw its noise, encode its pictures or prompt, lay out its noise levels and its guidance.

All the randomness of a request is one CPU float32 generator, seeded with the request's seed and read in a fixed order:
first the augmentation noise of the conditioning pictures, then the initial latents. That is the order in which
diffusers' StableVideoDiffusionPipeline draws them, so the same seed gives the same video there and here, on any device.

Legend: P conditioning pictures, T frames, C channels, H, W pixels; h, w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from model.checkpoint import Checkpoint
from model.conditioning import condition
from model.params import Params
from model.sampling.row import BatchKey, Row, guidance_scale
from model.sampling.schedule import make_schedule
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

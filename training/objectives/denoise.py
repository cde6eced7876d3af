"""The denoising objective of every task (paper, section 4; EDM, equation 8).

    E || F(c_in x; c_noise, condition) - (y - c_skip x) / c_out ||^2,   x = y + sigma n,   ln sigma ~ N(P_mean, P_std^2)

which is EDM's loss with the weight lambda(sigma) = 1 / c_out^2. Sigma is drawn once a CLIP, never a frame. What a task
is told beside x comes from its examples (training.objectives.examples).

A row's draws follow from (seed, iteration, row), its noise from those and the clip's name, so neither depends on how
many processes share the work.

Clips that a run samples of itself go through the sampler that serves, with a training row's own condition.

Legend: B clips, T frames, C latent channels, H, W pixels; h, w latent.
"""

from __future__ import annotations

import zlib
from functools import partial

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.denoiser import Conditioning, CpuThreads, TorchDenoiser
from model.errors import InvalidRequest
from model.media.video import Frames
from model.params import ScheduleName, SolverName
from model.presets import NoiseRange, preset
from model.sampling.row import BatchKey, Row
from model.sampling.sampler import append_dims, precondition, sample
from model.sampling.solvers import make_schedule
from model.shapes import LatentShape
from training.config import DenoiserConfig, Denoising
from training.data.config import PromptedData
from training.data.seeding import generator
from training.distributed import all_reduce_sum, rank_and_size, shard
from training.fast_blocks import speed_up
from training.initial_weights import unet_of
from training.joint_image_video import fill_temporal_gradients, image_rows
from training.objectives.buckets import BucketedExamples
from training.objectives.protocol import (
    Batch,
    Decode,
    Examples,
    backward_in_parallel,
    crop_batch,
    group_by_kind,
    split_into_calls,
)

_WINDOW, _NOISE, _BUCKET = 1, 2, 3
_SAMPLE_STEPS = 8


class DenoiseObjective:
    """Denoising of cached latents.

    Args:
        network: a denoiser, or a training.initial_weights.Denoiser.
        decode: scaled latents to frames, for the clips that a run shows of itself; None: it shows none.

    Raises:
        InvalidRequest: the rows of an iteration do not divide among the processes.
    """

    def __init__(self, config: Denoising, network: nn.Module, examples: Examples, decode: Decode | None = None) -> None:
        self.config, self.network, self.examples, self.decode = config, network, examples, decode
        self.rank, self.processes = rank_and_size()
        if config.optim.batch % self.processes:
            raise InvalidRequest(f"a batch of {config.optim.batch} does not divide among {self.processes}", param="set")
        if config.runtime.fast_blocks:
            self._refuse_pictures()
            speed_up(self.unet)
        if config.runtime.checkpointing:
            self.unet.enable_gradient_checkpointing()
        if config.runtime.sharding == "fsdp2":
            shard(self.unet)

    def _refuse_pictures(self) -> None:
        data = getattr(self.config, "data", None)
        if isinstance(data, PromptedData) and data.image_share:
            raise InvalidRequest(
                "fast blocks train on clips alone: set runtime.fast_blocks=false or data.image_share=0", param="set"
            )

    @property
    def module(self) -> nn.Module:
        """The denoiser, and what trains with it."""
        return self.network

    @property
    def unet(self) -> UNetSpatioTemporalConditionModel:
        """The denoiser itself."""
        return unet_of(self.network)

    def enter(self, step: int) -> None:
        """Train the time embedding alone at first, where the recipe says so."""
        alone = isinstance(self.config, DenoiserConfig) and step < self.config.time_only_until
        for name, p in self.network.named_parameters():
            p.requires_grad_(not alone or "time_embedding." in name)

    def rate(self, step: int) -> float:
        """The schedule as it is."""
        return 1.0

    def rows(self, step: int) -> list[Batch]:
        """The rows of iteration `step` that are this process's; where there are sizes to choose from, all of one."""
        seed, count = self.config.optim.seed, self.config.optim.batch
        windowed = step < self.config.window_until
        examples = self.examples
        if isinstance(examples, BucketedExamples):
            examples = examples.bucket(generator(seed, step, 0, _BUCKET))
        out: list[Batch] = []
        for row in range(self.rank, count, self.processes):
            example = examples.example(generator(seed, step, row))
            out.append(self._window(example, generator(seed, step, row, _WINDOW)) if windowed else example)
        return out

    def _window(self, row: Batch, draw: torch.Generator) -> Batch:
        """A random window of the latent: cheaper, while there is much to learn that needs no more."""
        height, width = row.clean.shape[-2:]
        side = (min(height, self.config.window_height // 8), min(width, self.config.window_width // 8))
        top = int(torch.randint(0, height - side[0] + 1, (), generator=draw))
        left = int(torch.randint(0, width - side[1] + 1, (), generator=draw))
        return crop_batch(row, top, left, *side)

    def backward(self, step: int) -> dict[str, float]:
        """The gradients of iteration `step`: the mean error of its rows over all processes."""
        batches = self._calls(step)
        pieces = [partial(self._share, batch, *self.noise(batch, step)) for batch in batches]
        if self._alone:
            summed = backward_in_parallel(pieces)
            if any(self._skips(batch) for batch in batches):
                fill_temporal_gradients(self.unet)
            return {"loss": summed}
        mine = 0.0
        for piece in pieces:
            loss = piece()
            # Sharding and the trainer average over processes what is meant to be a sum.
            (loss * self.processes).backward()
            mine += loss.item()
        return {"loss": all_reduce_sum(mine)}

    @property
    def _alone(self) -> bool:
        """Whether calls may run side by side: one process on a CPU, with nothing to save memory for."""
        runtime = self.config.runtime
        plain = runtime.accumulate == 1 and runtime.sharding == "none" and self.processes == 1
        return plain and self.unet.device.type == "cpu"

    def _skips(self, batch: Batch) -> bool:
        """Whether the temporal layers are not computed: gradient checkpointing would not know it when it recomputes."""
        return batch.pictures and self._alone and not self.config.runtime.checkpointing

    def _calls(self, step: int) -> list[Batch]:
        rows, runtime = self.rows(step), self.config.runtime
        if runtime.sharding != "none":
            return rows  # every process has to make as many calls as the others, whatever kinds its rows are of
        if self._alone:
            return split_into_calls(rows)
        size = -(-len(rows) // runtime.accumulate)
        return [call for first in range(0, len(rows), size) for call in group_by_kind(rows[first : first + size])]

    def names(self, step: int) -> list[str]:
        """The clips of iteration `step`, with their frames."""
        return [name for row in self.rows(step) for name in row.names]

    def samples(self, step: int) -> dict[str, Frames]:
        """A clip made of the first row's condition, beside the row itself."""
        if self.decode is None or self.config.runtime.sharding != "none":
            return {}
        row = self.examples.example(generator(self.config.optim.seed, 0, 0))
        if row.pictures:
            return {}
        noise = preset(self.config.preset).noise
        return {"sampled": self.decode(self._sample(row, noise)), "target": self.decode(row.clean[0])}

    def _sample(self, row: Batch, noise: NoiseRange) -> Float[Tensor, "T C h w"]:
        """The latents of a clip that the run shows of itself."""
        return sample_clip(self.unet, row, noise, _SAMPLE_STEPS, self.config.optim.seed)

    def noise(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """ln-normal sigma [B] and noise like the clips, each from the clip's name."""
        config = self.config
        draws = [generator(config.optim.seed, step, zlib.crc32(name.encode()), _NOISE) for name in batch.names]
        log_sigma = torch.stack([torch.randn((), generator=draw) for draw in draws])
        noise = torch.stack([torch.randn(batch.clean.shape[1:], generator=draw) for draw in draws])
        return (config.p_mean + config.p_std * log_sigma).exp(), noise

    def _share(self, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
        """What the call adds to the mean error over rows; pictures of one row count as one row."""
        if batch.pictures and self.config.runtime.fast_blocks:
            raise InvalidRequest("fast blocks cannot train on pictures: set runtime.fast_blocks=false", param="set")
        device = self.unet.device
        low = self.config.runtime.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            errors = denoising_error(
                self.unet,
                batch.to(device),
                sigma.to(device),
                noise.to(device),
                skip_temporal=self._skips(batch),
            )
        return errors.mean() * batch.rows / self.config.optim.batch


def denoising_error(
    unet: UNetSpatioTemporalConditionModel, batch: Batch, sigma: Tensor, noise: Tensor, *, skip_temporal: bool = False
) -> Tensor:
    """Mean squared error of F against its target, one number a clip [B].

    Args:
        skip_temporal: of pictures, do not compute the temporal layers, which have no share in the error.
    """
    noisy = batch.clean + append_dims(sigma, batch.clean) * noise
    c = precondition(sigma)
    target = (batch.clean - append_dims(c.c_skip, noisy) * noisy) / append_dims(c.c_out, noisy)
    model_input = torch.cat([append_dims(c.c_in, noisy) * noisy, batch.concat], dim=2)
    kwargs = {"encoder_hidden_states": batch.context, "added_time_ids": batch.vector, "return_dict": False}
    indicator = torch.ones(batch.clean.shape[:2]) if batch.pictures else None
    with image_rows(indicator, temporal=not skip_temporal):
        out: Tensor = unet(model_input, c.c_noise, **kwargs)[0]
    return F.mse_loss(out.float(), target, reduction="none").mean(dim=(1, 2, 3, 4))


def sample_clip(
    unet: UNetSpatioTemporalConditionModel,
    row: Batch,
    noise: NoiseRange,
    steps: int,
    seed: int,
    solver: SolverName = "euler",
    schedule: ScheduleName = "karras",
) -> Float[Tensor, "T C h w"]:
    """The scaled latents that the network makes of a row's condition, unguided."""
    frames, channels, height, width = row.clean.shape[1:]
    inputs = row.to(unet.device)
    start = Row.begin(
        BatchKey("training", LatentShape(frames, channels, height, width), "float32"),
        solver=solver,
        sigmas=make_schedule(schedule, steps, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max, rho=noise.rho),
        noise=torch.randn(row.clean.shape[1:], generator=generator(seed)).to(unet.device),
        conditioning=Conditioning(inputs.context[0].detach(), inputs.concat[0].detach(), inputs.vector[0]),
        scale=torch.ones(frames),
        seed=seed,
    )
    training = unet.training
    try:
        return sample(TorchDenoiser(unet, CpuThreads(torch.get_num_threads())), start).latents
    finally:
        unet.train(training)

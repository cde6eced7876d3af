"""A request becomes a row: draw its noise, encode its pictures or prompt, lay out its noise levels and its guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image

from model.checkpoint import Checkpoint
from model.conditioning import condition
from model.params import Params
from model.sampling.guidance import guidance_scale
from model.sampling.noise import draw_noise
from model.sampling.row import BatchKey, Row
from model.sampling.schedule import make_schedule


def begin_row(checkpoint: Checkpoint, params: Params, pictures: Sequence[Image]) -> Row:
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
        )

"""A request becomes a row: draw its noise, encode its picture, lay out its noise levels and its guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image

from model.checkpoint import Checkpoint
from model.conditioning import condition_on_picture
from model.errors import InvalidRequest
from model.params import ImageToVideoParams, Params
from model.sampling.guidance import guidance_scale
from model.sampling.noise import draw_noise
from model.sampling.row import BatchKey, Row
from model.sampling.schedule import make_schedule


def begin_row(checkpoint: Checkpoint, params: Params, pictures: Sequence[Image]) -> Row:
    """The row of one request, on the checkpoint's device.

    Args:
        pictures: in the order of the task's spec; RGB, already of the clip's height and width.

    Raises:
        InvalidRequest: a picture has another size, or a setting the checkpoint cannot serve.
    """
    if not isinstance(params, ImageToVideoParams):
        raise InvalidRequest(f"{checkpoint.entry.name} cannot serve {type(params).__name__}")
    entry, unet = checkpoint.entry, checkpoint.unet
    latent = params.shape.latent(checkpoint.latent_channels)
    noise = draw_noise(params.seed, params.shape, latent)
    with torch.inference_mode():
        return Row.begin(
            BatchKey(f"{entry.name}@{entry.version}", latent, str(unet.dtype).removeprefix("torch.")),
            solver=params.solver,
            sigmas=make_schedule(
                params.schedule,
                params.num_inference_steps,
                sigma_min=checkpoint.noise.sigma_min,
                sigma_max=checkpoint.noise.sigma_max,
                rho=checkpoint.noise.rho,
            ),
            noise=noise.latents.to(unet.device),
            conditioning=condition_on_picture(checkpoint, params, pictures[0], noise.augmentation),
            scale=guidance_scale(entry.task.guidance, *params.guidance_range, params.num_frames),
            seed=params.seed,
        )

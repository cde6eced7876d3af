"""A request becomes a row: draw its noise, encode its picture, lay out its noise levels and its guidance."""

from __future__ import annotations

import torch
from PIL.Image import Image

from model.checkpoint import Checkpoint
from model.conditioning import condition_on_picture
from model.params import ImageToVideoParams
from model.sampling.guidance import guidance_scale
from model.sampling.noise import draw_noise
from model.sampling.row import BatchKey, Row
from model.sampling.schedule import make_schedule


def begin_row(checkpoint: Checkpoint, params: ImageToVideoParams, picture: Image) -> Row:
    """The row of one image-to-video request, on the checkpoint's device.

    Args:
        picture: RGB, already of the clip's height and width.

    Raises:
        InvalidRequest: the picture has another size, or a setting the checkpoint cannot serve.
    """
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
            conditioning=condition_on_picture(checkpoint, params, picture, noise.augmentation),
            scale=guidance_scale(
                entry.task.guidance, params.min_guidance_scale, params.max_guidance_scale, params.num_frames
            ),
            seed=params.seed,
        )

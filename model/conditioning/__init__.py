"""What a request becomes for the network: cross-attention context, concatenated latents, and a vector of scalars.

All three follow from the task's spec: `context` says what is read (text, one picture, two), `concat_latents` and
`augmentation` what stands beside the noisy latents, `vector` which scalars are told. As published (paper, section 4
and appendix D): a still's latent is repeated over the frames WITHOUT the latent scaling factor, after a little noise
in PIXEL space; two stills stand at the ends of the clip, with noise in LATENT space (model.conditioning.ends); the
vector holds fps - 1 and the others as they are.

Legend: T frames, P pictures, K concatenated channels, N context tokens, D their width, V scalars; h, w latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from model.checkpoint import Checkpoint
from model.conditioners import ImagePair, TextTower, VisionTower
from model.conditioning.ends import between_ends
from model.conditioning.pictures import (
    CLIP_SIZE,
    clip_input,
    fitting_pixels,
    image_context,
    image_latents,
    picture_to_pixels,
    resize_antialiased,
)
from model.conditioning.text import text_context
from model.errors import InvalidRequest
from model.params import PARAMS, Params, TextToVideoParams
from model.sampling.row import Conditioning
from model.tasks.spec import VectorField


def condition(
    checkpoint: Checkpoint, params: Params, pictures: Sequence[Image], noise: Float[Tensor, "..."]
) -> Conditioning:
    """Everything the network is told of one request, on the checkpoint's device.

    Args:
        pictures: in the order of the task's spec; RGB, already of the clip's height and width.
        noise: unit-variance augmentation noise, as `model.sampling.noise.draw_noise` lays it out for the task;
            `noise_aug_strength` scales it.

    Raises:
        InvalidRequest: settings of another task, a picture too many or too few or of another size, or a prompt beyond
            what the text encoder reads.
    """
    task = checkpoint.entry.task
    if type(params) is not PARAMS[task.name]:
        raise InvalidRequest(f"{checkpoint.entry.name} serves {task.name}, not {type(params).__name__}", param="model")
    if len(pictures) != len(task.pictures):
        raise InvalidRequest(f"{task.name} takes {len(task.pictures)} pictures, not {len(pictures)}", param="image")
    pixels = [
        fitting_pixels(name, picture, params.height, params.width)
        for name, picture in zip(task.pictures, pictures, strict=True)
    ]
    return Conditioning(
        context=_context(checkpoint, params, pixels),
        concat=_concat(checkpoint, params, pixels, noise),
        vector=torch.tensor(
            [_scalar(name, params) for name in task.vector], dtype=torch.float32, device=checkpoint.unet.device
        ),
    )


def _context(checkpoint: Checkpoint, params: Params, pixels: list[Tensor]) -> Float[Tensor, "N D"]:
    conditioners = checkpoint.conditioners
    if isinstance(conditioners, TextTower):
        assert isinstance(params, TextToVideoParams)
        return text_context(conditioners, params.prompt)
    tower = conditioners if isinstance(conditioners, VisionTower) else conditioners.vision
    return image_context(tower, torch.stack(pixels))


def _concat(
    checkpoint: Checkpoint, params: Params, pixels: list[Tensor], noise: Float[Tensor, "..."]
) -> Float[Tensor, "T K h w"]:
    conditioners, vae = checkpoint.conditioners, checkpoint.vae
    if isinstance(params, TextToVideoParams):
        latent = params.shape.latent(checkpoint.latent_channels)
        return torch.zeros(params.num_frames, 0, latent.height, latent.width, device=checkpoint.unet.device)
    if isinstance(conditioners, ImagePair):
        latents = image_latents(vae, torch.stack(pixels)) * checkpoint.scaling_factor
        start, end = latents + params.noise_aug_strength * noise.to(latents.device)
        return between_ends(start, end, conditioners.mask, params.num_frames)
    latents = image_latents(vae, torch.stack(pixels) + params.noise_aug_strength * noise)
    return latents.expand(params.num_frames, -1, -1, -1)


def _scalar(name: VectorField, params: Params) -> float:
    """A scalar of the vector, as the network was trained on it."""
    value = float(getattr(params, name))
    return value - 1 if name == "fps" else value


__all__ = [
    "CLIP_SIZE",
    "between_ends",
    "clip_input",
    "condition",
    "fitting_pixels",
    "image_context",
    "image_latents",
    "picture_to_pixels",
    "resize_antialiased",
    "text_context",
]

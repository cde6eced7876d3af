"""Pictures as the networks take them: pixels in [-1, 1], CLIP's input and embedding, the autoencoder's latents.

Legend: B pictures, C channels, H, W pixels, S CLIP's side, D embedding width; h, w latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from model.conditioners import VisionTower
from model.errors import InvalidRequest
from model.vae import encode_mode

CLIP_SIZE = 224


def picture_to_pixels(picture: Image) -> Float[Tensor, "3 H W"]:
    """RGB pixels in [-1, 1], float32 on the CPU."""
    unit = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0
    return torch.from_numpy(unit).permute(2, 0, 1) * 2.0 - 1.0


def fitting_pixels(name: str, picture: Image, height: int, width: int) -> Float[Tensor, "3 H W"]:
    """A conditioning picture's pixels.

    Raises:
        InvalidRequest: it is not of the clip's size; `param` is its name.
    """
    if picture.size != (width, height):
        raise InvalidRequest(
            f"the picture is {picture.width}x{picture.height}, the clip {width}x{height}: "
            "fit it first (model.image.fit_picture)",
            param=name,
        )
    return picture_to_pixels(picture)


def image_context(tower: VisionTower, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
    """CLIP embeddings of pictures in [-1, 1], float32."""
    encoder = tower.encoder
    seen = clip_input(pixels, tower.mean, tower.std)
    embeds: Tensor = encoder(seen.to(encoder.device, encoder.dtype)).image_embeds
    return embeds.float()


def image_latents(vae: AutoencoderKLTemporalDecoder, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
    """The autoencoder's MODE of pictures in [-1, 1], NOT multiplied by its scaling factor, float32."""
    return encode_mode(vae, pixels.to(vae.device, vae.dtype)).float()


def clip_input(
    pixels: Float[Tensor, "B 3 H W"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B 3 S S"]:
    """Pictures in [-1, 1] as the CLIP encoder wants them: antialiased to 224 x 224, then normalised.

    The resize runs on [-1, 1] values, before the shift to [0, 1], as the published pipelines do: bicubic interpolation
    overshoots, and what it overshoots is not clamped.
    """
    small = (resize_antialiased(pixels, CLIP_SIZE, CLIP_SIZE) + 1.0) / 2.0
    return (small - small.new_tensor(mean)[:, None, None]) / small.new_tensor(std)[:, None, None]


def resize_antialiased(pixels: Float[Tensor, "B C H W"], height: int, width: int) -> Float[Tensor, "B C h w"]:
    """Bicubic with aligned corners, after a Gaussian blur of (shrink factor - 1) / 2 pixels in each direction."""
    blurred = _blur(_blur(pixels, pixels.shape[-1] / width, vertical=False), pixels.shape[-2] / height, vertical=True)
    return functional.interpolate(blurred, size=(height, width), mode="bicubic", align_corners=True)


def _blur(pixels: Tensor, factor: float, *, vertical: bool) -> Tensor:
    """A one-directional Gaussian blur for shrinking by `factor`, edges reflected; none where nothing shrinks."""
    if factor <= 1:
        return pixels
    deviation = max((factor - 1) / 2, 0.001)
    size = int(max(4 * deviation, 3)) | 1
    radius = size // 2
    offset = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    weight = torch.exp(-offset.square() / (2 * deviation**2))
    weight = weight / weight.sum()
    channels = pixels.shape[1]
    shape, pad = ((size, 1), (0, 0, radius, radius)) if vertical else ((1, size), (radius, radius, 0, 0))
    padded = functional.pad(pixels, pad, mode="reflect")
    return functional.conv2d(padded, weight.view(1, 1, *shape).expand(channels, 1, *shape), groups=channels)

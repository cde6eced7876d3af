"""All the randomness of a request: one CPU float32 generator, seeded with the request's seed, read in a fixed order.

First the augmentation noise of the conditioning picture, then the initial latents: the order in which diffusers'
StableVideoDiffusionPipeline draws them from a single generator, so the same seed gives the same video there and here,
on any device.

Legend: T frames, C channels, H, W pixels; h, w latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from model.shapes import LatentShape, VideoShape


@dataclass(frozen=True, slots=True)
class RequestNoise:
    """Unit-variance noise, float32 on the CPU: `augmentation` for the picture, `latents` to start from."""

    augmentation: Float[Tensor, "3 H W"]
    latents: Float[Tensor, "T C h w"]


def draw_noise(seed: int, video: VideoShape, latent: LatentShape) -> RequestNoise:
    """The noise that `seed` stands for."""
    generator = torch.Generator("cpu").manual_seed(seed)
    augmentation = torch.randn((3, video.height, video.width), generator=generator, dtype=torch.float32)
    latents = torch.randn(latent.as_tuple(), generator=generator, dtype=torch.float32)
    return RequestNoise(augmentation, latents)

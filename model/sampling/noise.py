"""All the randomness of a request: one CPU float32 generator, seeded with the request's seed, read in a fixed order.

First the augmentation noise of the conditioning pictures, then the initial latents: the order in which diffusers'
StableVideoDiffusionPipeline draws them from a single generator, so the same seed gives the same video there and here,
on any device.

Legend: P conditioning pictures, T frames, C channels, H, W pixels; h, w latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from model.shapes import LatentShape, VideoShape
from model.tasks.spec import Augmentation, TaskSpec


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

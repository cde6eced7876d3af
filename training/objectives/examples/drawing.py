"""Draws that several tasks share.

Legend: T frames, H, W pixels, C latent channels; h, w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from diffusers import AutoencoderKLTemporalDecoder
from jaxtyping import Float
from torch import Tensor

from model.vae import encode_mode
from training.data.latents import LatentClip, to_pixels
from training.data.motion_bucket import MotionMap

T = TypeVar("T")


def uniform(draw: torch.Generator) -> float:
    """A number from [0, 1)."""
    return float(torch.rand((), generator=draw))


def choice(things: Sequence[T], draw: torch.Generator) -> T:
    """One of the things, all alike."""
    return things[int(torch.randint(0, len(things), (), generator=draw))]


def lognormal(log_mean: float, log_std: float, draw: torch.Generator) -> float:
    """A log-normal noise level (paper, appendix D)."""
    return float(torch.tensor(log_mean + log_std * float(torch.randn((), generator=draw))).exp())


@dataclass(frozen=True, slots=True)
class ClipWindow:
    """Frames of a clip at a stride: latents [T, C, h, w] unscaled, their frame numbers, frames a second, flow."""

    clip: LatentClip
    latents: Float[Tensor, "T C h w"]
    index: list[int]
    fps: float
    flow: float

    def vector(self, motion: MotionMap) -> tuple[float, float]:
        """fps - 1 and the motion bucket, as the network is told them."""
        return round(self.fps) - 1.0, float(motion.bucket(self.flow))


def usable_strides(clip: LatentClip, num_frames: int) -> list[int]:
    """The strides at which a clip is long enough."""
    return [s for s in clip.flow if len(clip.latents) > (num_frames - 1) * s]


def draw_window(clip: LatentClip, num_frames: int, draw: torch.Generator) -> ClipWindow:
    """A stretch of the clip, its stride and start drawn."""
    stride = choice(usable_strides(clip, num_frames), draw)
    span = (num_frames - 1) * stride
    first = int(torch.randint(0, len(clip.latents) - span, (), generator=draw))
    index = list(range(first, first + span + 1, stride))
    latents = torch.from_numpy(clip.latents[index]).float()
    flow = float(clip.flow[stride][index[:-1]].mean())
    return ClipWindow(clip, latents, index, clip.clip.item.fps / stride, flow)


@torch.no_grad()
def noisy_latent(
    vae: AutoencoderKLTemporalDecoder, clip: LatentClip, frame: int, noise: float, draw: torch.Generator
) -> Float[Tensor, "C h w"]:
    """The unscaled mode of a frame with noise on its PIXELS, as the condition is made at inference."""
    pixels = to_pixels(clip.clip.frames[frame : frame + 1])
    noisy = pixels + noise * torch.randn(pixels.shape, generator=draw)
    return encode_mode(vae, noisy.to(vae.device))[0].cpu()

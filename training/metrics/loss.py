"""Validation loss at fixed noise levels: the training objective on held-out clips, noise level by noise level.

E || F(c_in x; c_noise, condition) - (y - c_skip x) / c_out ||^2 with x = y + sigma n (EDM, equation 8): a number that
does not depend on how sigma is drawn in training, so checkpoints compare at each level. What the network is told is
what a request would make of it (model.conditioning), so it is the loss of what is served.

Legend: B clips, T frames, C latent channels; h, w latent; H, W pixels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from model.backends.protocol import Denoiser
from model.checkpoint import Checkpoint
from model.conditioning import picture_to_pixels
from model.presets import NoiseRange
from model.sampling.precondition import over, precondition
from model.sampling.row import Conditioning
from model.vae import encode_mode

Frames = np.ndarray[Any, np.dtype[np.uint8]]
LEVELS = 4


def noise_levels(noise: NoiseRange, count: int = LEVELS) -> list[float]:
    """Levels evenly spaced in ln(sigma), within the checkpoint's range but for its outer tenths."""
    low, high = math.log(noise.sigma_min), math.log(noise.sigma_max)
    margin = (high - low) / 10
    return [float(math.exp(one)) for one in np.linspace(low + margin, high - margin, count)]


@torch.inference_mode()
def clean_latents(checkpoint: Checkpoint, clip: Frames) -> Float[Tensor, "T C h w"]:
    """A clip's latents as the diffusion model sees them: the encoder's mode, scaled."""
    vae = checkpoint.vae
    pixels = torch.stack([picture_to_pixels(Image.fromarray(frame)) for frame in clip])
    return encode_mode(vae, pixels.to(vae.device, vae.dtype)).float() * checkpoint.scaling_factor


@torch.inference_mode()
def validation_loss(
    denoiser: Denoiser, clean: Float[Tensor, "T C h w"], told: Conditioning, sigma: float, seed: int
) -> float:
    """The objective at one noise level; the same seed draws the same noise."""
    levels = torch.tensor([sigma])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    noisy = (clean + sigma * noise)[None]
    c = precondition(levels.to(clean.device))
    out = denoiser(over(c.c_in, noisy) * noisy, c.c_noise, told.context[None], told.concat[None], told.vector[None])
    target = (clean[None] - over(c.c_skip, noisy) * noisy) / over(c.c_out, noisy)
    return float((out - target).square().mean())

"""Validation loss at fixed noise levels: the training objective on held-out clips, noise level by noise level.

E || F(c_in x; c_noise, condition) - (y - c_skip x) / c_out ||^2 with x = y + sigma n (EDM, equation 8): a number that
does not depend on how sigma is drawn in training, so checkpoints compare at each level. The condition is what a request
would make of it (model.conditioning), so it is the loss of what is served. As a figure of a task it is the mean over
held-out clips at each of a few noise levels.

Legend: B clips, T frames, C latent channels; h, w latent; H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from model.checkpoint import Checkpoint
from model.conditioning import condition, picture_to_pixels
from model.denoiser import Conditioning, Denoiser, DenoiserInputs
from model.media.video import Frames
from model.presets import NoiseRange
from model.sampling.sampler import append_dims, draw_noise, precondition
from model.vae import encode_mode
from training.config import ProgressCallback
from training.metrics.generate import ClipMaker, GenerationRequest

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
    denoiser: Denoiser, clean: Float[Tensor, "T C h w"], conditioning: Conditioning, sigma: float, seed: int
) -> float:
    """The objective at one noise level; the same seed draws the same noise."""
    levels = torch.tensor([sigma])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    noisy = (clean + sigma * noise)[None]
    c = precondition(levels.to(clean.device))
    scaled = append_dims(c.c_in, noisy) * noisy
    out = denoiser(DenoiserInputs.stack(list(scaled), list(c.c_noise), [conditioning]))
    target = (clean[None] - append_dims(c.c_skip, noisy) * noisy) / append_dims(c.c_out, noisy)
    return float((out - target).square().mean())


CLIPS = 16
"""Clips that the loss is taken over, at most."""
PROTOCOL = (
    f"Mean squared error of the network's output against its target (EDM, equation 8) on up to {CLIPS} held-out clips "
    "at each noise level sigma, the same noise for every checkpoint of one size; conditions as a request makes them."
)


def conditioning_of(maker: ClipMaker, one: GenerationRequest) -> Conditioning:
    """The conditioning of a request."""
    checkpoint, params = maker.checkpoint, maker.params_of(one)
    latent = params.shape.latent(checkpoint.latent_channels)
    noise = draw_noise(params.seed, checkpoint.entry.task, params.shape, latent)
    with torch.inference_mode():
        return condition(checkpoint, params, one.pictures, noise.augmentation)


def loss_figure(
    maker: ClipMaker, requests: Sequence[GenerationRequest], clips: Sequence[Frames], report: ProgressCallback
) -> dict[str, Any]:
    """Mean loss by noise level; a clip for each request."""
    pairs = list(zip(requests, clips, strict=True))[:CLIPS]
    levels = noise_levels(maker.checkpoint.noise)
    losses = []
    for done, (one, clip) in enumerate(pairs):
        report("validation loss", done, len(pairs))
        clean, conditioning = clean_latents(maker.checkpoint, clip), conditioning_of(maker, one)
        losses.append([validation_loss(maker.denoiser, clean, conditioning, sigma, one.seed) for sigma in levels])
    means = np.array(losses).mean(axis=0)
    return {"by_sigma": {f"{s:.3g}": float(m) for s, m in zip(levels, means, strict=True)}, "clips": len(pairs)}

"""Validation loss as a figure of every task: the mean over held-out clips at each of a few noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from model.conditioning import condition
from model.sampling.noise import draw_noise
from model.sampling.row import Conditioning
from training.metrics.generate import ClipMaker, Report, Wanted
from training.metrics.loss import clean_latents, noise_levels, validation_loss

Frames = np.ndarray[Any, np.dtype[np.uint8]]

CLIPS = 16
"""Clips that the loss is taken over, at most."""
PROTOCOL = (
    f"Mean squared error of the network's output against its target (EDM, equation 8) on up to {CLIPS} held-out clips "
    "at each noise level sigma, the same noise for every checkpoint of one size; conditions as a request makes them."
)


def told_of(maker: ClipMaker, one: Wanted) -> Conditioning:
    """What the network is told of a request."""
    checkpoint, params = maker.checkpoint, maker.params_of(one)
    latent = params.shape.latent(checkpoint.latent_channels)
    noise = draw_noise(params.seed, checkpoint.entry.task, params.shape, latent)
    with torch.inference_mode():
        return condition(checkpoint, params, one.pictures, noise.augmentation)


def loss_figure(maker: ClipMaker, wanted: Sequence[Wanted], clips: Sequence[Frames], report: Report) -> dict[str, Any]:
    """Mean loss by noise level; a clip for each request."""
    pairs = list(zip(wanted, clips, strict=True))[:CLIPS]
    levels = noise_levels(maker.checkpoint.noise)
    found = []
    for done, (one, clip) in enumerate(pairs):
        report("validation loss", done, len(pairs))
        clean, told = clean_latents(maker.checkpoint, clip), told_of(maker, one)
        found.append([validation_loss(maker.denoiser, clean, told, sigma, one.seed) for sigma in levels])
    means = np.array(found).mean(axis=0)
    return {"by_sigma": {f"{s:.3g}": float(m) for s, m in zip(levels, means, strict=True)}, "clips": len(pairs)}

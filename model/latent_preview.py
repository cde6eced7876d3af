"""Latent previews: a linear map from latent channels to RGB (latent2rgb), fitted at training time.

A row's denoised sample follows from two neighbouring states without another call of the network: the step's ODE
derivative is d = (x_next - x) / (sigma_next - sigma), and D = x_next - sigma_next d.

Legend: T frames, C latent channels; h, w latent; a preview has one pixel a latent cell.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from model.catalog import SIDECAR, ModelEntry
from model.sampling.row import Row
from model.sampling.solvers import Latents

PREVIEW_SCALE = 4
PREVIEW_FRAMES = 4


@dataclass(frozen=True, slots=True)
class LatentColours:
    """Colour of a latent cell: latents times `weights` plus `bias`, RGB in [-1, 1]."""

    weights: Float[Tensor, "C 3"]
    bias: Float[Tensor, " 3"]

    def __call__(self, latents: Latents) -> UInt8[np.ndarray, "T h w 3"]:
        """A picture of every latent frame."""
        rgb = torch.einsum("tchw,cd->thwd", latents.float().cpu(), self.weights) + self.bias
        levels: np.ndarray = (rgb / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
        return levels


def latent_colours(entry: ModelEntry) -> LatentColours | None:
    """The checkpoint's map; None where its folder names none (published weights do not)."""
    path = entry.path / SIDECAR
    fields = json.loads(path.read_text()).get("latent_colours") if path.exists() else None
    return fields and LatentColours(torch.tensor(fields["weights"]), torch.tensor(fields["bias"]))


def denoised(before: Row, after: Row) -> Latents:
    """What the sampler takes for the clean sample between two states of a row, `before` a step behind `after`."""
    sigma, sigma_next = before.sigmas[before.step], after.sigmas[after.step]
    derivative = (after.latents - before.latents) / (sigma_next - sigma)
    return after.latents - sigma_next * derivative


def preview_jpeg(colours: LatentColours, latents: Latents) -> bytes:
    """A strip of PREVIEW_FRAMES frames from the first to the last, as a small JPEG."""
    frames = colours(latents)
    strip_frames = frames[np.linspace(0, len(frames) - 1, min(PREVIEW_FRAMES, len(frames))).round().astype(int)]
    strip = Image.fromarray(np.concatenate(list(strip_frames), axis=1))
    large = strip.resize((strip.width * PREVIEW_SCALE, strip.height * PREVIEW_SCALE), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    large.save(out, "JPEG", quality=80)
    return out.getvalue()

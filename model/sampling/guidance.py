"""Classifier-free guidance whose scale runs over the FRAMES of a clip.

The first frame is nearly given by the picture and wants little guidance; later ones want more (paper, appendix D.3;
SV3D, Voleti et al. 2024, section 3.3, for the triangle). Guiding the network's output is the same as guiding the
denoised sample, since equation 7 of EDM is linear in it.

Legend: T frames, C channels; h, w latent.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from model.tasks import GuidanceShape


def guidance_scale(shape: GuidanceShape, low: float, high: float, num_frames: int) -> Float[Tensor, " T"]:
    """The scale of each frame.

    Args:
        shape: linear: `low` at the first frame, `high` at the last, in either order of size. constant: `high`
            everywhere. triangular: `low` at both ends, `high` in the middle (for closed orbits).
    """
    if shape == "constant":
        return torch.full((num_frames,), high)
    if shape == "linear":
        return torch.linspace(low, high, num_frames)
    along = torch.linspace(0.0, 1.0, num_frames)
    return low + (high - low) * (1 - (2 * along - 1).abs())


def needs_unconditional(scale: Float[Tensor, " T"]) -> bool:
    """Whether any frame's scale differs from 1; where none does, the unconditional output would cancel out."""
    return not bool((scale == 1).all())


def guide(
    unconditional: Float[Tensor, "T C h w"], conditional: Float[Tensor, "T C h w"], scale: Float[Tensor, " T"]
) -> Float[Tensor, "T C h w"]:
    """Frame by frame: unconditional + scale (conditional - unconditional) (Ho and Salimans 2022, equation 6)."""
    return (conditional - unconditional).mul_(scale[:, None, None, None]).add_(unconditional)

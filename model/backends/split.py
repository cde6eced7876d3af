"""Calls no larger than memory holds: the places of a larger one go in groups, one after another."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from model.backends.protocol import Denoiser


class SplitDenoiser:
    """A Denoiser (model.backends.protocol) around another, called with at most `places` places."""

    def __init__(self, inner: Denoiser, places: int) -> None:
        self._inner = inner
        self._places = places

    def __call__(
        self,
        latents: Float[Tensor, "B T C h w"],
        timestep: Float[Tensor, " B"],
        context: Float[Tensor, "B N D"],
        concat: Float[Tensor, "B T K h w"],
        vector: Float[Tensor, "B V"],
    ) -> Float[Tensor, "B T C h w"]:
        """See Denoiser."""
        told = (latents, timestep, context, concat, vector)
        groups = zip(*(part.split(self._places) for part in told), strict=True)
        return torch.cat([self._inner(*group) for group in groups])

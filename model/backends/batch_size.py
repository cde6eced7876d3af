"""The same bits in any company on a device whose kernels depend on the batch size: every call has the same one.

At a fixed batch size and with pinned kernels a place's result does not depend on what is in the others (DESIGN,
Identity); so short calls are padded with a place repeated, and longer ones split.

Calls no larger than memory holds: the places of a larger one go in groups, one after another.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from model.denoiser import Denoiser


class FixedBatchDenoiser:
    """A Denoiser (model.denoiser) around another, called with exactly `places` places each time."""

    def __init__(self, inner: Denoiser, places: int) -> None:
        self._inner = inner
        self._places = places
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True

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
        return torch.cat([self._padded(group) for group in groups])

    def _padded(self, group: tuple[Tensor, ...]) -> Tensor:
        here = len(group[0])
        index = torch.arange(self._places, device=group[0].device).clamp(max=here - 1)
        return self._inner(*(part[index] for part in group))[:here]


class MaxBatchDenoiser:
    """A Denoiser (model.denoiser) around another, called with at most `places` places."""

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

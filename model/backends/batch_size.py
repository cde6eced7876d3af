"""Denoiser calls of a fixed or a bounded batch size.

`FixedBatchDenoiser` makes a GPU backend batch-invariant: kernels are chosen by the batch size, so at one batch size and
with pinned kernels a slot's result does not depend on the others (DESIGN, Identity). `MaxBatchDenoiser` bounds what a
call takes in memory.

Legend: B batch slots, T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from model.denoiser import Denoiser, DenoiserInputs


class FixedBatchDenoiser:
    """A Denoiser (model.denoiser) around another, called with exactly `batch_size` slots each time.

    Shorter calls are padded with their last slot, longer ones are split.
    """

    def __init__(self, inner: Denoiser, batch_size: int) -> None:
        self._inner = inner
        self._batch_size = batch_size
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser."""
        return torch.cat([self._run_padded(group) for group in inputs.split(self._batch_size)])

    def _run_padded(self, inputs: DenoiserInputs) -> Tensor:
        count = inputs.batch_size
        slots = torch.arange(self._batch_size, device=inputs.latents.device).clamp(max=count - 1)
        return self._inner(inputs.index(slots))[:count]


class MaxBatchDenoiser:
    """A Denoiser (model.denoiser) around another, called with at most `max_batch_size` slots."""

    def __init__(self, inner: Denoiser, max_batch_size: int) -> None:
        self._inner = inner
        self._max_batch_size = max_batch_size

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser."""
        return torch.cat([self._inner(group) for group in inputs.split(self._max_batch_size)])

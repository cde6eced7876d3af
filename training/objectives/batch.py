"""What one row of a training batch is, and how rows become the calls of an iteration.

Legend: B clips, T frames, C latent channels, K concatenated channels, N context tokens, D width, V scalars; h, w
latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from training.data.latents import LatentClip


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips for one call of the network; all float32.

    Args:
        clean: scaled latents.
        concat: what stands beside the noisy latents; K may be 0.
        context: cross-attention tokens.
        vector: the task's scalars.
        names: which clips they are, for the noise and for the log.
        pictures: whether these are independent pictures (T = 1), which temporal layers leave alone.
        rows: of an iteration's rows, how many this is: the pictures of one row count as one.
    """

    clean: Float[Tensor, "B T C h w"]
    concat: Float[Tensor, "B T K h w"]
    context: Float[Tensor, "B N D"]
    vector: Float[Tensor, "B V"]
    names: tuple[str, ...]
    pictures: bool = False
    rows: int = 1

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        clean, concat, context, vector = (
            part.to(device) for part in (self.clean, self.concat, self.context, self.vector)
        )
        return replace(self, clean=clean, concat=concat, context=context, vector=vector)


class Examples(Protocol):
    """A task's training data: rows, each a function of its generator alone."""

    @property
    def clips(self) -> list[LatentClip]:
        """Footage with its latents, for what is fitted on latents."""
        ...

    def example(self, draw: torch.Generator) -> Batch:
        """One row: a clip (B = 1), or several pictures of one frame each."""
        ...


def crop_batch(batch: Batch, top: int, left: int, height: int, width: int) -> Batch:
    """The same row, of its latents only a window."""
    window = (..., slice(top, top + height), slice(left, left + width))
    return replace(batch, clean=batch.clean[window], concat=batch.concat[window])


def concat_batches(rows: Sequence[Batch]) -> Batch:
    """Rows of one kind and shape as one batch."""
    return Batch(
        clean=torch.cat([row.clean for row in rows]),
        concat=torch.cat([row.concat for row in rows]),
        context=torch.cat([row.context for row in rows]),
        vector=torch.cat([row.vector for row in rows]),
        names=tuple(name for row in rows for name in row.names),
        pictures=rows[0].pictures,
        rows=sum(row.rows for row in rows),
    )


def group_by_kind(rows: Sequence[Batch]) -> list[Batch]:
    """The rows as one call, or as two where some are pictures and some are clips."""
    kinds = [[row for row in rows if row.pictures is kind] for kind in (False, True)]
    return [concat_batches(kind) for kind in kinds if kind]


def split_into_calls(rows: Sequence[Batch]) -> list[Batch]:
    """The rows as at most two calls of about the same size: by kind, or else in two halves."""
    kinds = group_by_kind(rows)
    if len(kinds) == 2:
        return kinds
    middle = (len(rows) + 1) // 2
    return [concat_batches(half) for half in (rows[:middle], rows[middle:]) if half]

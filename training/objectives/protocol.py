"""An objective: the network and the loss that train, the batches it takes, and their backward passes.

Legend: B clips, T frames, C latent channels, K concatenated channels, N context tokens, D width, V scalars; h, w
latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.media.video import Frames
from training.data.latents import LatentClip

Decode = Callable[[Tensor], Frames]
"""Scaled latents [T, C, h, w] to frames."""


class Objective(Protocol):
    """A network and the loss that trains it."""

    @property
    def module(self) -> nn.Module:
        """Everything that may train; parameters that do not yet have requires_grad off."""
        ...

    def enter(self, step: int) -> None:
        """Make the network ready for iteration `step` (phases). Depends on `step` alone, so resuming is exact."""
        ...

    def rate(self, step: int) -> float:
        """What the scheduled learning rate is multiplied by at iteration `step`; 1 where phases do not matter."""
        ...

    def backward(self, step: int) -> dict[str, float]:
        """Add the gradients of iteration `step` to the module's; its batch is a function of (seed, step).

        Returns:
            `loss`, and its parts for the log.
        """
        ...

    def names(self, step: int) -> list[str]:
        """What iteration `step` trained on, for the message when its loss is not finite."""
        ...

    def samples(self, step: int) -> dict[str, Frames]:
        """Clips [T, H, W, 3] that show what the network makes now, by name; none where it makes nothing."""
        ...


def backward_of(loss: Tensor, parts: dict[str, float]) -> dict[str, float]:
    """Backpropagate one loss."""
    loss.backward()
    return {"loss": loss.item(), **parts}


def backward_in_parallel(pieces: Sequence[Callable[[], Tensor]]) -> float:
    """Backpropagate losses that add up, each in a thread of its own; returns their sum.

    On a few CPU cores, whole clips side by side use them better than one clip's operations split over threads. With two
    pieces the gradient does not depend on which ends first (addition commutes), so runs stay reproducible.
    """

    def one(piece: Callable[[], Tensor]) -> float:
        loss = piece()
        loss.backward()
        return loss.item()

    if len(pieces) == 1:
        return one(pieces[0])
    with ThreadPoolExecutor(len(pieces)) as pool:
        return sum(pool.map(one, pieces))


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

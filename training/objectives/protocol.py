"""What the trainer asks of an objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from torch import Tensor, nn

from model.media.video import Frames


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

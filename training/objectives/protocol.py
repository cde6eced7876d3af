"""What the trainer asks of an objective."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


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

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of iteration `step`, on a batch that is a function of (seed, step), and its parts for the log."""
        ...


def generator(*key: int) -> torch.Generator:
    """A generator whose stream depends on the key alone: (seed, step), (seed, clip, step), ..."""
    mixed = 0x9E3779B97F4A7C15
    for part in key:
        mixed = (mixed ^ (part + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed % 2**63)

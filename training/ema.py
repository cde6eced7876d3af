"""Exponential moving average of weights, with a warm-up so that early steps are forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Keeps an averaged copy of a network's trainable parameters.

    The decay at update n is min(decay, (1 + n) / (10 + n)), so that the average follows quickly at first.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's weights.

        Parameters that begin to train start from their value; frozen ones leave the average: what trains on beside
        them has only ever seen the weights they were frozen at.
        """
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in module.named_parameters():
            if not p.requires_grad:
                self.average.pop(name, None)
            else:
                kept = self.average.setdefault(name, p.detach().clone())
                kept.lerp_(p.detach(), 1 - decay)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Within the block the module holds the averaged weights."""
        own = {name: p.detach().clone() for name, p in module.named_parameters() if name in self.average}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in module.named_parameters():
                    if name in own:
                        p.copy_(own[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into the module."""
        for name, p in module.named_parameters():
            if name in self.average:
                p.copy_(self.average[name])

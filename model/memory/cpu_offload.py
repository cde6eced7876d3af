"""Networks that live on the CPU and visit the device while they are used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class CpuOffload:
    """Networks on the CPU between uses. Several threads may use one at once; the last to leave moves it back.

    Args:
        device: where they work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._guests: dict[nn.Module, int] = {}

    @contextmanager
    def of(self, *networks: nn.Module) -> Iterator[None]:
        """The networks are on the device within the block."""
        with self._lock:
            for network in networks:
                self._guests[network] = self._guests.get(network, 0) + 1
                if self._guests[network] == 1:
                    network.to(self._device)
        try:
            yield
        finally:
            with self._lock:
                for network in networks:
                    self._guests[network] -= 1
                    if self._guests[network] == 0:
                        network.to("cpu")

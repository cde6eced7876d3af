"""CPU offload (diffusers: model_cpu_offload): networks live on the CPU and are on the device only while in use."""

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
        self._in_use: dict[nn.Module, int] = {}

    @contextmanager
    def on_device(self, *networks: nn.Module) -> Iterator[None]:
        """The networks are on the device within the block."""
        with self._lock:
            for network in networks:
                self._in_use[network] = self._in_use.get(network, 0) + 1
                if self._in_use[network] == 1:
                    network.to(self._device)
            self._synchronize()  # another thread's stream may use them next
        try:
            yield
        finally:
            # Its kernels may still be queued, and memory that is given up is at once another stream's to use.
            self._synchronize()
            with self._lock:
                for network in networks:
                    self._in_use[network] -= 1
                    if self._in_use[network] == 0:
                        network.to("cpu")

    def _synchronize(self) -> None:
        """Wait for what this thread has queued on the device."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

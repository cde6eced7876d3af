"""CPU offload (diffusers: model_cpu_offload, group_offload): networks or their blocks are on the device only in use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNetSpatioTemporalConditionModel
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


def offload_blocks(unet: UNetSpatioTemporalConditionModel, device: torch.device) -> None:
    """Group offload of a denoiser (diffusers' `enable_group_offload`): one block after another is on the device.

    For a fused denoiser that no LoRA is merged into: weights that are views of one tensor become copies.
    """
    unet.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )

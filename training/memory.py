"""Memory that training really takes, to be held against what its plan (training.plan) predicts.

On a GPU: the most that was allocated. On a CPU: how far the resident memory grew at its peak, and what the network,
its average and the optimizer held already when counting began. Frozen networks and cached latents are in neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from model.heap import give_back_freed_memory

GIB = 2**30
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Counts from when it is made.

    Args:
        device: where the network trains.
        held: tensors that belong to the training and are there already.
    """

    def __init__(self, device: torch.device, held: Iterable[Tensor]) -> None:
        self._device = device
        self._held = self._began = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}
        self._held = sum(storages.values())
        give_back_freed_memory()  # or what was freed before would serve the work unseen
        if _CLEAR.exists():
            _CLEAR.write_text("5")  # the kernel's peak starts anew from what is resident now
        self._began = _resident("VmRSS")

    @property
    def bytes(self) -> int | None:
        """The peak up to now; None where the system does not tell."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        peak = _resident("VmHWM")
        return self._held + max(0, peak - self._began) if peak else None


def _resident(field: str) -> int:
    """A line of the kernel's account of this process, in bytes; 0 where there is none."""
    if not _STATUS.exists():
        return 0
    line = next((one for one in _STATUS.read_text().splitlines() if one.startswith(field + ":")), None)
    return int(line.split()[1]) * 1024 if line else 0


def compared(predicted: int | None, measured: int | None) -> str:
    """Both, for a person."""
    told = [f"{name} {size / GIB:.2f} GiB" for name, size in _both(predicted, measured) if size is not None]
    return "memory of one process: " + (", ".join(told) or "this system does not tell")


def logged(predicted: int | None, measured: int | None) -> dict[str, float]:
    """Both, for the log."""
    return {f"{name}_gib": round(size / GIB, 4) for name, size in _both(predicted, measured) if size is not None}


def _both(predicted: int | None, measured: int | None) -> tuple[tuple[str, int | None], ...]:
    return ("predicted", predicted), ("measured", measured)

"""What a caller is told of an exception: a stable code and a message with the remedy."""

from __future__ import annotations

import errno

import torch

from model.errors import GenerationFailed, OutOfMemory, StillmotionError, StorageFull
from serving.engine.protocol import Failed


def failed(error: BaseException) -> Failed:
    """The event for an exception raised by one job's work."""
    if isinstance(error, StillmotionError):
        return Failed(error.code, error.message)
    if is_out_of_memory(error):
        return Failed(
            OutOfMemory.code,
            "the device ran out of memory; ask for fewer frames, a smaller size or a smaller decode_chunk_size",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Failed(StorageFull.code, "the disk is full; free some space and send the job again")
    code = GenerationFailed.code if isinstance(error, RuntimeError) else StillmotionError.code
    return Failed(code, f"{type(error).__name__}: {error}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch, on a device or on the CPU, could not allocate."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)

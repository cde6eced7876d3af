"""Out of memory: how large a denoiser call may be, what is freed when one did not fit, and the error a caller gets.

Legend: T frames; h, w latent.
"""

from __future__ import annotations

import errno
import gc
import logging
import time
from collections.abc import Hashable

import torch
from diffusers import UNetSpatioTemporalConditionModel

from model.errors import GenerationFailed, OutOfMemory, StillmotionError, StorageFull
from model.shapes import LatentShape
from serving.engine.protocol import Failed


def failure_event(error: BaseException) -> Failed:
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


logger = logging.getLogger(__name__)

MOST_ELEMENTS = 2**31 - 1
"""Of one tensor in a convolution or a matrix product: their kernels count in 32 bits."""
_GEGLU = 8
"""The feed-forward of a transformer block projects to 8 times its width: the widest tensor there is."""
_FORGIVEN_AFTER_S = 120.0


def max_batch_size(unet: UNetSpatioTemporalConditionModel, latent: LatentShape) -> int:
    """Batch slots of the largest call whose tensors all stay within 2^31 elements; at least 1.

    svd-xt at 25 x 72 x 128: 3, so two guided clips do not fit in one call.
    """
    widths = unet.config["block_out_channels"]
    widest: int = max(
        latent.num_frames * -(-latent.height // 2**level) * -(-latent.width // 2**level) * _GEGLU * width
        for level, width in enumerate(widths)
    )
    return max(1, MOST_ELEMENTS // widest)


def free_cached_memory() -> None:
    """Give back what is held for nothing, before something is tried again."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class BatchSizeBackoff:
    """The batch that memory last refused, by BatchKey: calls stay below it for a while; others may use the device too.

    Called from the step thread alone.
    """

    def __init__(self) -> None:
        self._refused: dict[Hashable, tuple[int, float]] = {}

    def refuse(self, key: Hashable, batch_size: int) -> None:
        """A call of `batch_size` slots did not fit."""
        logger.warning(
            "a call of %d batch slots does not fit into memory; smaller ones for %.0f s", batch_size, _FORGIVEN_AFTER_S
        )
        self._refused[key] = (batch_size, time.monotonic())

    def of(self, key: Hashable, most: int) -> int:
        """Batch slots that may be tried, up to `most`."""
        batch_size, when = self._refused.get(key, (most + 1, 0.0))
        if time.monotonic() - when > _FORGIVEN_AFTER_S:
            return most
        return max(1, min(most, batch_size - 1))

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
from model.optimized.kernel_blocks import MAX_ELEMENTS
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
    """Whether Python, torch or a library it calls, on a device or on the CPU, could not allocate."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Whether the error is sticky: every later call on the device fails with it, until the process is restarted."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    text = str(error)
    return _CUDA_ERROR in text and not any(reason in text for reason in _ONE_CALL_ONLY)


def release_traceback(error: BaseException) -> None:
    """Drop the frames that a caught error and its causes hold, and with them the tensors of the call that failed."""
    chain: BaseException | None = error
    while chain is not None:
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__


logger = logging.getLogger(__name__)

_NO_MEMORY = ("allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_CUDA_ERROR = "CUDA error: "
"""How torch.AcceleratorError, and RuntimeError before it, begin; cuBLAS's and cuDNN's own errors name a status."""
_ONE_CALL_ONLY = (
    "CUDA error: invalid argument",
    "CUDA error: invalid configuration argument",
    "CUDA error: invalid device",
    "CUDA error: no kernel image is available",
    "CUDA error: operation not supported",
    "CUDA error: operation not permitted",
    "CUDA error: CUBLAS_STATUS_",
)
"""Errors of a launch, after which the device goes on; of the others, CUDA says that the process must end."""

_STACKED = 3
"""Widest tensor of a fused block over its width: queries, keys and values in one; or, in the decoding half, a level's
features beside those of the next. The feed-forward, wider still, is split by tokens (model.optimized.kernel_blocks)."""
_GEGLU = 8
"""The same of an exported graph, whose feed-forward is one matrix product."""
_FORGIVEN_AFTER_S = 120.0


def max_batch_size(unet: UNetSpatioTemporalConditionModel, latent: LatentShape, *, exported: bool = False) -> int:
    """Batch slots of the largest call whose tensors all stay within 2^31 elements; at least 1.

    svd-xt at 25 x 72 x 128: 9 in torch, 3 as an exported graph.
    """
    widths = unet.config["block_out_channels"]
    factor = _GEGLU if exported else _STACKED
    widest: int = max(
        latent.num_frames * -(-latent.height // 2**level) * -(-latent.width // 2**level) * factor * width
        for level, width in enumerate(widths)
    )
    return max(1, MAX_ELEMENTS // widest)


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

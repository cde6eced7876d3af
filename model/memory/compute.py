"""How much arithmetic a network needs, counted on the meta device, and how fast a device does it.

Counted are matrix products, convolutions and attention; everything else is a small share of the time at size. With a
device's measured rate this gives an estimate in seconds before anything has run.

Legend: B batch size, T frames; h, w latent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from model.memory.plan import decode_on_meta, denoise_on_meta
from model.shapes import LatentShape

_SIDE = 1024
"""Of the matrices that a device's rate is measured with."""
_LONGEST_S = 0.2


class _CountedAttention(TorchFunctionMode):
    """Attention as its output, and its two matrix products as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            scores = query.shape[:-1].numel() * key.shape[-2]
            self.flops += 2 * scores * (query.shape[-1] + value.shape[-1])
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of what `work` runs on the meta device: two for each multiplication and addition."""
    attention, counter = _CountedAttention(), FlopCounterMode(display=False)
    with torch.inference_mode(), attention, counter:
        work()
    return int(counter.get_total_flops()) + attention.flops


def denoiser_flops(unet: UNetSpatioTemporalConditionModel, latent: LatentShape) -> int:
    """Of a denoiser call of one clip."""
    return count_flops(denoise_on_meta(unet, latent, 1))


def decoder_flops(vae: AutoencoderKLTemporalDecoder, latent: LatentShape, chunk: int) -> int:
    """Of decoding a chunk of frames."""
    return count_flops(decode_on_meta(vae, latent, chunk))


def device_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of large matrix products on the device, measured for a moment.

    On a CPU by the processor time they take, so that other programs' work does not count.
    """
    left, right = (torch.ones(_SIDE, _SIDE, device=device, dtype=dtype) for _ in range(2))
    threads = 1 if device.type == "cuda" else torch.get_num_threads()
    best, until = float("inf"), time.perf_counter() + _LONGEST_S
    while best == float("inf") or time.perf_counter() < until:
        wall, processor = time.perf_counter(), time.process_time()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - wall
        if device.type == "cpu":
            taken = min(taken, (time.process_time() - processor) / threads)
        best = min(best, max(taken, 1e-6))
    return 2 * _SIDE**3 / best

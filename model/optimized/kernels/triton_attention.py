"""Attention over time that reads its stacked projection where it lies: a Triton kernel.

A pixel's frames are few (25), so a program has all their queries, keys and values at once and no scores leave it.

Legend: B clips, T frames, N pixels, C channels, d width of a head.
"""

# No `from __future__ import annotations`: Triton reads `tl.constexpr` off the signatures.
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.optimized.kernels.triton_norm import on_device

PIXELS = 4
"""Pixels that a program takes one after another."""


@triton.jit
@no_type_check
def _temporal_attention(
    projected, out, pixels, channels, frames, width, factor,
    PIXELS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    head, clip = tl.program_id(1), tl.program_id(2).to(tl.int64)
    frame, number = tl.arange(0, FRAMES), tl.arange(0, WIDTH)
    known = (frame < frames)[:, None] & (number < width)[None, :]
    for step in range(PIXELS):
        pixel = tl.program_id(0) * PIXELS + step
        inside = known & (pixel < pixels)
        token = (clip * frames + frame)[:, None] * pixels + pixel
        at = projected + token * (3 * channels) + head * width + number[None, :]
        query = tl.load(at, inside, 0.0)
        key = tl.load(at + channels, inside, 0.0)
        value = tl.load(at + 2 * channels, inside, 0.0)
        if INTERPRETED:  # the interpreter has no product of bfloat16
            query, key = query.to(tl.float32), key.to(tl.float32)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * factor
        scores = tl.where((frame < frames)[None, :], scores, float("-inf"))
        scores = tl.exp(scores - tl.max(scores, 1)[:, None])
        total = tl.sum(scores, 1)
        scores = scores.to(value.dtype)
        if INTERPRETED:
            scores, value = scores.to(tl.float32), value.to(tl.float32)
        mixed = tl.dot(scores, value, input_precision="ieee") / total[:, None]
        place = out + token * channels + head * width + number[None, :]
        tl.store(place, mixed.to(out.dtype.element_ty), inside)


def temporal_attention(projected: Tensor, heads: int) -> Tensor:
    """See model.optimized.kernels.library.temporal_attention."""
    clips, frames, pixels, channels = *projected.shape[:3], projected.shape[3] // 3
    out = torch.empty(clips, frames, pixels, channels, device=projected.device, dtype=projected.dtype)
    width = channels // heads
    with on_device(projected):
        _temporal_attention[(triton.cdiv(pixels, PIXELS), heads, clips)](
            projected, out, pixels, channels, frames, width, width**-0.5,
            PIXELS=PIXELS, FRAMES=max(16, triton.next_power_of_2(frames)), WIDTH=max(16, triton.next_power_of_2(width)),
            INTERPRETED=projected.device.type == "cpu",
        )  # fmt: skip
    return out

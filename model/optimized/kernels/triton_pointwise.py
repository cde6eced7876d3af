"""GEGLU, and a sum blended with a third tensor: Triton kernels that read each number once.

Legend: M rows, C channels.
"""

# No `from __future__ import annotations`: Triton reads `tl.constexpr` off the signatures.
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.optimized.kernels.triton_norm import on_device

NUMBERS = 1024
"""Numbers that a program writes."""


@triton.jit
@no_type_check
def _geglu(x, out, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    at = x + row[:, None] * (2 * channels) + channel[None, :]
    wide = tl.load(at, inside, 0.0).to(tl.float32)
    gate = tl.load(at + channels, inside, 0.0).to(tl.float32)
    gate = gate * 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    result = (wide * gate).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * channels + channel[None, :], result, inside)


def geglu(x: Tensor) -> Tensor:
    """See model.optimized.kernels.library.geglu."""
    rows, channels = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, channels, device=x.device, dtype=x.dtype)
    width = min(256, triton.next_power_of_2(channels))
    here = NUMBERS // width
    with on_device(x):
        _geglu[(triton.cdiv(rows, here), triton.cdiv(channels, width))](
            x, out, rows, channels, ROWS=here, CHANNELS=width
        )
    return out


@triton.jit
@no_type_check
def _add_lerp(start, x, y, share, out, numbers, NUMBERS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
    inside = at < numbers
    a = tl.load(start + at, inside, 0.0).to(tl.float32)
    b = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(y + at, inside, 0.0).to(tl.float32)
    w = tl.load(share).to(tl.float32)
    tl.store(out + at, (a + w * (b - a)).to(out.dtype.element_ty), inside)


def add_lerp(start: Tensor, x: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """See model.optimized.kernels.library.add_lerp."""
    out = torch.empty_like(start)
    with on_device(x):
        _add_lerp[(triton.cdiv(start.numel(), NUMBERS),)](start, x, y, share, out, start.numel(), NUMBERS=NUMBERS)
    return out

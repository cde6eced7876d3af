"""GroupNorm (with SiLU) over channels-last rows, and a sum with its LayerNorm: Triton kernels and their launches.

Statistics are float32. Those of GroupNorm come from one pass, in which every chunk of rows gives the mean and the sum
of squared differences of each channel; chunks are united as in Chan et al. 1979, so nothing cancels. A second pass
scales, shifts and activates. torch's own group_norm on CUDA copies a channels-last input to channels-first, and its
output lies channels-first too.

Legend: N samples, L rows of a sample (its pixels, or its frames and pixels), C channels, G groups.
"""

# No `from __future__ import annotations`: Triton reads `tl.constexpr` off the signatures.
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, TILES, CHANNELS = 32, 16, 64
"""A chunk is TILES tiles of ROWS rows; a program works on CHANNELS channels of it."""
TILE_NUMBERS = 4096
"""Numbers that a LayerNorm program holds in registers, at least one row of them."""


@triton.jit
@no_type_check
def _chunk_moments(
    x, extra, moments, rows, channels, span, chunks,
    HAS_EXTRA: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Means [N, chunks, 0, C] and sums of squared differences [N, chunks, 1, C] of one chunk."""
    chunk, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    start = chunk * TILES * ROWS
    mean = tl.zeros([CHANNELS], tl.float32)
    squares = tl.zeros([CHANNELS], tl.float32)
    for first in range(start, tl.minimum(start + TILES * ROWS, rows), ROWS):
        count = (first - start).to(tl.float32)
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (channel < channels)[None, :]
        numbers = sample * rows + row
        v = tl.load(x + numbers[:, None] * channels + channel[None, :], inside, 0.0).to(tl.float32)
        if HAS_EXTRA:
            v += tl.load(extra + (numbers // span)[:, None] * channels + channel[None, :], inside, 0.0).to(tl.float32)
        here = tl.minimum(rows - first, ROWS).to(tl.float32)
        own = tl.sum(v, 0) / here
        apart = tl.where(inside, v - own[None, :], 0.0)
        weight = here / (count + here)
        squares += tl.sum(apart * apart, 0) + (own - mean) * (own - mean) * count * weight
        mean += (own - mean) * weight
    at = moments + (sample * chunks + chunk) * 2 * channels + channel
    tl.store(at, mean, channel < channels)
    tl.store(at + channels, squares, channel < channels)


@triton.jit
@no_type_check
def _unite_moments(
    moments, weight, bias, scale, shift, rows, channels, in_group, chunks, eps,
    LENGTH: tl.constexpr, CHUNKS: tl.constexpr, IN_GROUP: tl.constexpr,
):  # fmt: skip
    """Scale and shift [N, C] of a group's channels. LENGTH is a chunk's rows."""
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    member = tl.arange(0, IN_GROUP)
    channel = group * in_group + member
    total = tl.zeros([CHUNKS, IN_GROUP], tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        inside = (chunk < chunks)[:, None] & (member < in_group)[None, :]
        count = tl.minimum(rows - chunk * LENGTH, LENGTH).to(tl.float32)
        at = moments + (sample * chunks + chunk)[:, None] * 2 * channels + channel[None, :]
        total += tl.load(at, inside, 0.0) * count[:, None]
    numbers = 1.0 * rows * in_group
    mean = tl.sum(tl.sum(total, 1), 0) / numbers
    total = tl.zeros([CHUNKS, IN_GROUP], tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        inside = (chunk < chunks)[:, None] & (member < in_group)[None, :]
        count = tl.minimum(rows - chunk * LENGTH, LENGTH).to(tl.float32)
        at = moments + (sample * chunks + chunk)[:, None] * 2 * channels + channel[None, :]
        apart = tl.load(at, inside, 0.0) - mean
        squares = tl.load(at + channels, inside, 0.0)
        total += tl.where(inside, squares + apart * apart * count[:, None], 0.0)
    variance = tl.sum(tl.sum(total, 1), 0) / numbers
    w = tl.load(weight + channel, member < in_group, 0.0).to(tl.float32) / tl.sqrt(variance + eps)
    b = tl.load(bias + channel, member < in_group, 0.0).to(tl.float32)
    tl.store(scale + sample * channels + channel, w, member < in_group)
    tl.store(shift + sample * channels + channel, b - mean * w, member < in_group)


@triton.jit
@no_type_check
def _scale_rows(
    x, extra, scale, shift, out, rows, channels, span,
    HAS_EXTRA: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """(x + extra) * scale + shift, and its SiLU."""
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    numbers = sample * rows + row
    at = numbers[:, None] * channels + channel[None, :]
    v = tl.load(x + at, inside, 0.0).to(tl.float32)
    if HAS_EXTRA:
        v += tl.load(extra + (numbers // span)[:, None] * channels + channel[None, :], inside, 0.0).to(tl.float32)
    a = tl.load(scale + sample * channels + channel, channel < channels, 0.0)
    b = tl.load(shift + sample * channels + channel, channel < channels, 0.0)
    v = v * a[None, :] + b[None, :]
    if SILU:
        v = v * tl.sigmoid(v)
    tl.store(out + at, v.to(out.dtype.element_ty), inside)


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, extra: Tensor | None, span: int
) -> Tensor:
    """See model.optimized.kernels.library.group_norm."""
    samples, rows, channels = x.shape
    chunks, blocks = triton.cdiv(rows, ROWS * TILES), triton.cdiv(channels, CHANNELS)
    moments = torch.empty(samples, chunks, 2, channels, device=x.device, dtype=torch.float32)
    scale, shift = (torch.empty(samples, channels, device=x.device, dtype=torch.float32) for _ in range(2))
    out = torch.empty_like(x)
    has, added = extra is not None, x if extra is None else extra
    with on_device(x):
        _chunk_moments[(chunks, samples, blocks)](
            x, added, moments, rows, channels, span, chunks,
            HAS_EXTRA=has, ROWS=ROWS, TILES=TILES, CHANNELS=CHANNELS,
        )  # fmt: skip
        in_group = channels // groups
        _unite_moments[(samples, groups)](
            moments, weight, bias, scale, shift, rows, channels, in_group, chunks, eps,
            LENGTH=ROWS * TILES, CHUNKS=min(64, triton.next_power_of_2(chunks)),
            IN_GROUP=triton.next_power_of_2(in_group),
        )  # fmt: skip
        _scale_rows[(triton.cdiv(rows, 2 * ROWS), samples, blocks)](
            x, added, scale, shift, out, rows, channels, span,
            HAS_EXTRA=has, SILU=silu, ROWS=2 * ROWS, CHANNELS=CHANNELS,
        )  # fmt: skip
    return out


@triton.jit
@no_type_check
def _add_layer_norm(
    x, y, extra, weight, bias, added, out, rows, channels, span, extras, eps,
    HAS_EXTRA: tl.constexpr, STORE_EXTRA: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The sum (with its extra only where STORE_EXTRA), and the LayerNorm of the sum with its extra."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    known = (channel < channels)[None, :]
    inside = (row < rows)[:, None] & known
    at = row[:, None] * channels + channel[None, :]
    v = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(y + at, inside, 0.0).to(tl.float32)
    if not STORE_EXTRA:
        tl.store(added + at, v.to(added.dtype.element_ty), inside)
    if HAS_EXTRA:
        which = ((row // span) % extras)[:, None] * channels + channel[None, :]
        v += tl.load(extra + which, inside, 0.0).to(tl.float32)
    if STORE_EXTRA:
        tl.store(added + at, v.to(added.dtype.element_ty), inside)
    mean = tl.sum(v, 1) / channels
    apart = tl.where(known, v - mean[:, None], 0.0)
    deviation = tl.sqrt(tl.sum(apart * apart, 1) / channels + eps)
    w = tl.load(weight + channel, channel < channels, 0.0).to(tl.float32)
    b = tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)
    v = apart / deviation[:, None] * w[None, :] + b[None, :]
    tl.store(out + at, v.to(out.dtype.element_ty), inside)


def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float, extra: Tensor | None, span: int, store_extra: bool
) -> tuple[Tensor, Tensor]:
    """See model.optimized.kernels.library.add_layer_norm."""
    rows, channels = x.shape
    added, out = torch.empty_like(x), torch.empty_like(x)
    width = triton.next_power_of_2(channels)
    here = max(1, TILE_NUMBERS // width)
    with on_device(x):
        _add_layer_norm[(triton.cdiv(rows, here),)](
            x, y, x if extra is None else extra, weight, bias, added, out,
            rows, channels, span, 1 if extra is None else len(extra), eps,
            HAS_EXTRA=extra is not None, STORE_EXTRA=store_extra, ROWS=here, CHANNELS=width,
        )  # fmt: skip
    return added, out


def on_device(x: Tensor) -> Any:
    """The tensor's device made current: Triton launches on the current one."""
    return torch.cuda.device_of(x)

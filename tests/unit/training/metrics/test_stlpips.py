"""ST-LPIPS: nothing for equal pictures, little for a shift, more for blur; checked with weights drawn on the spot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from model.errors import DataError
from training.metrics.stlpips import published_weights, stlpips

SHAPES = {
    "net.slice1.0": (64, 3, 11),
    "net.slice2.5": (192, 64, 5),
    "net.slice3.9": (384, 192, 3),
    "net.slice4.11": (256, 384, 3),
    "net.slice5.13": (256, 256, 3),
}


def drawn_weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {
        "scaling_layer.shift": torch.zeros(1, 3, 1, 1),
        "scaling_layer.scale": torch.full((1, 3, 1, 1), 0.45),
    }
    for level, (name, (out, into, side)) in enumerate(SHAPES.items()):
        weights[f"{name}.weight"] = torch.randn(out, into, side, side, generator=draw) * (2 / (into * side**2)) ** 0.5
        weights[f"{name}.bias"] = torch.zeros(out)
        weights[f"lin{level}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=draw) / out
    kernel = torch.tensor([1.0, 2.0, 1.0])
    for name, channels in (("slice1.1", 64), ("slice2.4", 64), ("slice3.8", 192)):
        weights[f"net.{name}.filt"] = (torch.outer(kernel, kernel) / 16).expand(channels, 1, 3, 3)
    return weights


def clip(shift: int = 0, blur: float = 0.0) -> np.ndarray:
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 255, (12, 18, 3), dtype=np.uint8)).resize((144, 96))
    picture = picture.filter(ImageFilter.GaussianBlur(blur)) if blur else picture
    return np.asarray(picture)[None, 8:72, 8 + shift : 72 + shift].copy()


def test_equal_is_zero_and_a_shift_costs_less_than_blur() -> None:
    weights = drawn_weights()
    assert stlpips(clip(), clip(), weights) == 0
    shifted, blurred = stlpips(clip(), clip(1), weights), stlpips(clip(), clip(blur=6), weights)
    assert 0 < shifted < blurred
    assert stlpips(clip(1), clip(), weights) == pytest.approx(shifted, rel=1e-5)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="one shape"):
        stlpips(clip(), clip()[:, :-1], drawn_weights())
    with pytest.raises(DataError, match="from 32 pixels"):
        stlpips(clip()[:, :16, :16], clip()[:, :16, :16], drawn_weights())


@pytest.mark.full
def test_the_published_weights_forgive_a_shift() -> None:
    weights = published_weights()
    assert {f"{name}.weight" for name in SHAPES} <= weights.keys()
    shifted, blurred = stlpips(clip(), clip(1)), stlpips(clip(), clip(blur=3))
    assert 0 < shifted < blurred < 1

"""ST-LPIPS: how unlike two pictures look, forgiving shifts of a pixel (Ghildyal and Liu 2022, arXiv 2207.13686).

AlexNet's five activations, with blurs in place of strides, compared after normalising each position's channels,
weighted by learned channel weights, averaged over positions and summed. The weights are the authors', read from their
wheel without installing it; the network is written here. 0 for equal pictures; smaller is more alike.

Legend: N pictures, C channels, H, W pixels.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from model.errors import DataError
from model.media.video import Frames
from training.data.sources import Package, wheel_member

STLPIPS = Package(
    "pip-wheel",
    "stlpips-pytorch==0.0.2",
    "a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
    "BSD-2-Clause",
    "Shift-tolerant LPIPS, Abhijay Ghildyal and Feng Liu",
)
WEIGHTS = "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"
SMALLEST = 32
_EPS = 1e-10

Weights = dict[str, Tensor]


@functools.cache
def published_weights() -> Weights:
    """The authors' weights, fetched once.

    Raises:
        DataError: the wheel cannot be fetched, or is not the one pinned.
    """
    path = wheel_member(STLPIPS, WEIGHTS)
    weights: Weights = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def stlpips(one: Frames, other: Frames, weights: Weights | None = None) -> float:
    """Mean distance of 8-bit clips of one shape, frame by frame.

    Args:
        one, other: [T, H, W, 3].
        weights: as `published_weights` gives them, the default.

    Raises:
        DataError: the shapes differ, or the frames are too small.
    """
    if one.shape != other.shape or one.ndim != 4 or min(one.shape[1:3]) < SMALLEST:
        raise DataError(
            f"ST-LPIPS compares clips of one shape from {SMALLEST} pixels on, not {one.shape}, {other.shape}"
        )
    weights = weights or published_weights()
    with torch.inference_mode():
        distances = [distance(_pixels(a), _pixels(b), weights) for a, b in zip(one, other, strict=True)]
    return float(torch.cat(distances).mean())


def distance(one: Float[Tensor, "N 3 H W"], other: Float[Tensor, "N 3 H W"], weights: Weights) -> Float[Tensor, " N"]:
    """The distance of pictures in [-1, 1]."""
    total = torch.zeros(len(one))
    for level, (a, b) in enumerate(zip(_features(one, weights), _features(other, weights), strict=True)):
        apart = (_unit(a) - _unit(b)).square()
        total = total + F.conv2d(apart, weights[f"lin{level}.model.1.weight"]).mean(dim=(1, 2, 3))
    return total


def _features(picture: Tensor, weights: Weights) -> list[Tensor]:
    def convolved(x: Tensor, name: str, padding: int) -> Tensor:
        return F.conv2d(x, weights[f"net.{name}.weight"], weights[f"net.{name}.bias"], padding=padding)

    def halved(x: Tensor, name: str) -> Tensor:
        kernel = weights[f"net.{name}.filt"]
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])

    x = (picture - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
    features = [F.relu(halved(convolved(x, "slice1.0", 2), "slice1.1"))]
    features.append(F.relu(convolved(halved(F.max_pool2d(features[-1], 3, 1), "slice2.4"), "slice2.5", 2)))
    features.append(F.relu(convolved(halved(F.max_pool2d(features[-1], 3, 1), "slice3.8"), "slice3.9", 1)))
    features.append(F.relu(convolved(features[-1], "slice4.11", 1)))
    features.append(F.relu(convolved(features[-1], "slice5.13", 1)))
    return features


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPS)


def _pixels(frame: Frames) -> Tensor:
    return torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1

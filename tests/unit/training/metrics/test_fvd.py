"""FVD with a network of I3D's interface: scipy's matrix root agrees; what is no such network is refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from model.errors import DataError
from training.metrics.frechet import i3d_features, protocol, video_distance

Frames = np.ndarray[Any, np.dtype[np.uint8]]


class SmallI3D(nn.Module):
    """Six numbers a clip, of the size and range that I3D is fed with."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert not rescale
        assert not resize
        assert return_features
        assert list(x.shape[:2]) == [1, 3]
        assert list(x.shape[3:]) == [224, 224]
        assert bool((x.abs() <= 1).all())
        return torch.cat([x.mean(dim=(2, 3, 4)), x.diff(dim=2).abs().mean(dim=(2, 3, 4))], dim=1)


def scripted(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates the making of these files
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def clips(count: int, seed: int, light: int = 0) -> list[Frames]:
    draw = np.random.default_rng(seed)
    return [
        np.clip(draw.integers(0, 200, (9, 1, 1, 3)) + draw.integers(0, 20, (9, 16, 24, 3)) + light, 0, 255).astype(
            np.uint8
        )
        for _ in range(count)
    ]


def by_scipy(one: Any, other: Any) -> float:
    root = sqrtm(np.cov(one.T) @ np.cov(other.T)).real
    apart = np.sum((one.mean(0) - other.mean(0)) ** 2)
    return float(apart + np.trace(np.cov(one.T) + np.cov(other.T) - 2 * root))


def test_the_distance_is_that_of_its_definition(tmp_path: Path) -> None:
    features = i3d_features(scripted(SmallI3D(), tmp_path / "i3d.pt"))
    real, near, far = clips(12, 0), clips(12, 1), clips(12, 2, light=50)
    figure = video_distance(real, {"near": near, "far": far}, features, lambda *_: None)
    described = [np.stack([features(clip) for clip in side]) for side in (real, near)]
    assert figure["near"] == pytest.approx(by_scipy(*described), rel=1e-4)
    assert figure["near"] < figure["far"]
    assert figure["clips"] == 12


def test_the_network_is_part_of_the_protocol(tmp_path: Path) -> None:
    one = scripted(SmallI3D(), tmp_path / "one.pt")
    (tmp_path / "two.pt").write_bytes(one.read_bytes() + b"\0")
    assert protocol(one) != protocol(tmp_path / "two.pt")


def test_what_is_no_i3d_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(DataError, match="no TorchScript"):
        i3d_features(tmp_path / "text.pt")
    linear = i3d_features(scripted(nn.Linear(2, 2), tmp_path / "linear.pt"))
    with pytest.raises(DataError, match="does not take a clip"):
        linear(clips(1, 0)[0])
    with pytest.raises(DataError, match="9 frames or more"):
        linear(clips(1, 0)[0][:4])

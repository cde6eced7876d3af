"""Frechet distance between two sets of features, how sure it is, and Frechet video distance (FVD).

    d^2 = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))       (Dowson and Landau 1982; Heusel et al. 2017, eq. 6)

With X the centred features of set 1 (rows, over sqrt(n1 - 1)) and Y those of set 2, S1 = X'X and S2 = Y'Y, and the
last trace is the sum of the singular values of X Y': no square root of a large matrix, and no need for full rank.

With fewer clips than dimensions the covariances are noise in most directions, and that noise counts as distance. So
features are first projected on the leading principal directions of the REAL clips (`Projection`), and what a
generated set does outside of them is kept as one more coordinate: the length of its residual. The number is small
against the number of clips, and is stated with each figure.

FVD (Unterthiner et al. 2018, arXiv 1812.01717) is over the logits of an I3D network the user has: a TorchScript file
with the interface in common use, which takes [N, 3, T, 224, 224] in [-1, 1] and the keywords `rescale`, `resize` and
`return_features`, and gives 400 numbers a clip. It is nobody's to ship; name the file with `--i3d`, and its hash goes
into the protocol, so that distances by two networks are never compared. FVD is over all features, as published: it
needs thousands of clips to settle, and its value depends on how many. For a few dozen, `frechet` is the one to read.

Legend: N clips, T frames, H, W pixels, D features, K projected directions.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from model.errors import DataError
from model.media.video import Frames
from training.config import ProgressCallback

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Projection:
    """The leading principal directions of a set of features."""

    mean: Array
    directions: Array

    @classmethod
    def fit(cls, features: Array, keep: int) -> Projection:
        """Of [N, D] features; `keep` at most N - 1."""
        mean = features.mean(axis=0)
        _, _, directions = np.linalg.svd(features - mean, full_matrices=False)
        return cls(mean, directions[: min(keep, len(features) - 1)])

    def __call__(self, features: Array) -> Array:
        """[N, D] to [N, K + 1]: coordinates, and the length of what they leave out."""
        centred = features - self.mean
        inside = centred @ self.directions.T
        outside = np.linalg.norm(centred - inside @ self.directions, axis=1, keepdims=True)
        return np.concatenate([inside, outside], axis=1)


def frechet_distance(one: Array, other: Array) -> float:
    """Squared Frechet distance between the Gaussians of two sets of features, [N1, D] and [N2, D].

    Raises:
        DataError: fewer than two rows, or unequal D.
    """
    if min(len(one), len(other)) < 2 or one.shape[1] != other.shape[1]:
        raise DataError(f"a Frechet distance needs two clips or more a side, not {one.shape} and {other.shape}")
    x = (one - one.mean(axis=0)) / np.sqrt(len(one) - 1)
    y = (other - other.mean(axis=0)) / np.sqrt(len(other) - 1)
    apart = float(np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2))
    overlap = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    return max(0.0, apart + float(np.sum(x**2)) + float(np.sum(y**2)) - 2 * overlap)


def resamples(groups: Sequence[str], count: int, seed: int) -> list[np.ndarray[Any, np.dtype[np.intp]]]:
    """Row indices of `count` bootstrap resamples over groups: whole groups are drawn, with replacement.

    Clips of one shot are alike; drawing shots and not clips keeps the interval honest about it.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    rows = {name: np.array([index for index, one in enumerate(groups) if one == name]) for name in names}
    draws = rng.integers(0, len(names), (count, len(names)))
    return [np.concatenate([rows[names[index]] for index in draw]) for draw in draws]


def interval(values: Sequence[float] | Array, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of the values."""
    low, high = np.quantile(np.asarray(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


Features = Callable[[Frames], Array]

SIDE = 224
SHORTEST = 9
"""Frames that I3D needs, at least."""


def protocol(weights: Path) -> dict[str, str]:
    """How FVD was taken with this file."""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {
        "fvd": (
            "Frechet distance of I3D logits between the generated and the real held-out clips, all their features, "
            f"frames resized to {SIDE} x {SIDE} (bilinear). It shrinks as clips are added: compare equal counts only. "
            f"Network: SHA-256 {digest}."
        )
    }


def i3d_features(weights: Path) -> Features:
    """What describes a clip, [T, H, W, 3] to [D], by the TorchScript network in a file.

    Raises:
        DataError: the file is no TorchScript, or does not answer as I3D does; or, from what is returned, a clip has
            fewer than 9 frames.
    """
    try:
        with warnings.catch_warnings():
            # torch deprecates the format; the I3D files in use are of it, and torch's successor cannot read them.
            warnings.filterwarnings("ignore", "`torch.jit.load`", DeprecationWarning)
            network = torch.jit.load(str(weights), map_location="cpu").eval()
    except RuntimeError as error:
        raise DataError(f"{weights} is no TorchScript network ({_first_line(error)}); FVD takes I3D as one") from error

    def described(clip: Frames) -> Array:
        if len(clip) < SHORTEST:
            raise DataError(f"FVD takes clips of {SHORTEST} frames or more, not {len(clip)}")
        pixels = torch.from_numpy(clip.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        try:
            with torch.inference_mode():
                output = network(pixels.transpose(0, 1)[None], rescale=False, resize=False, return_features=True)
        except RuntimeError as error:
            raise DataError(f"{weights} does not take a clip as I3D does: {_first_line(error)}") from error
        return np.asarray(output[0].double().numpy())

    return described


def video_distance(
    real: Sequence[Frames], sides: Mapping[str, Sequence[Frames]], features: Features, report: ProgressCallback
) -> dict[str, Any]:
    """FVD of each side's clips to the real ones."""

    def described(name: str, clips: Sequence[Frames]) -> Array:
        rows = []
        for done, clip in enumerate(clips):
            report(f"I3D features of {name}", done, len(clips))
            rows.append(features(clip))
        return np.stack(rows)

    reference = described("real", real)
    figure: dict[str, Any] = {
        side: frechet_distance(reference, described(side, clips)) for side, clips in sides.items()
    }
    return figure | {"clips": len(real)}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""Frechet distance between two sets of features, and how sure it is.

    d^2 = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))       (Dowson and Landau 1982; Heusel et al. 2017, eq. 6)

With X the centred features of set 1 (rows, over sqrt(n1 - 1)) and Y those of set 2, S1 = X'X and S2 = Y'Y, and the
last trace is the sum of the singular values of X Y': no square root of a large matrix, and no need for full rank.

With fewer clips than dimensions the covariances are noise in most directions, and that noise counts as distance. So
features are first projected on the leading principal directions of the REAL clips (`Projection`), and what a
generated set does outside of them is kept as one more coordinate: the length of its residual. The number is small
against the number of clips, and is stated with each figure.

Legend: N clips, D features, K kept directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.errors import DataError

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
        kept = centred @ self.directions.T
        left = np.linalg.norm(centred - kept @ self.directions, axis=1, keepdims=True)
        return np.concatenate([kept, left], axis=1)


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

"""Bradley-Terry strengths (1952): P(i beats j) = 1 / (1 + exp(b_j - b_i)), fitted to all votes at once, in no order.

The strengths maximise   sum over votes of ln P(vote) - RIDGE / 2 * sum of b^2.   The small ridge keeps a contender that
won (or lost) every game finite, and fixes the mean at 0. Newton's method; the objective is concave. Intervals come
from a bootstrap over groups of votes (the still that was voted on), since votes on one still are alike.

Legend: P contenders, R bootstraps, W [.., P, P] counts: W[i, j] votes for i over j.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.curation.calibrate.elo import BOOTSTRAPS, SCALE, START, Game, Rating, indices, summary
from training.metrics.frechet import resamples

Array = np.ndarray[Any, np.dtype[np.float64]]

RIDGE = 0.05
ITERATIONS = 60
TO_ELO = SCALE / np.log(10)


def log_likelihood(strengths: Array, counts: Array, ridge: float = RIDGE) -> float:
    """What the fit maximises, of strengths [P] and counts [P, P]."""
    gaps = strengths[:, None] - strengths[None]
    return float(-(counts * np.logaddexp(0, -gaps)).sum() - ridge / 2 * (strengths**2).sum())


def fit(counts: Array, ridge: float = RIDGE) -> Array:
    """Strengths [.., P] of counts [.., P, P], in natural units, mean 0."""
    games = counts + np.swapaxes(counts, -1, -2)
    size = counts.shape[-1]
    b = np.zeros(counts.shape[:-1])
    eye = np.eye(size)
    for _ in range(ITERATIONS):
        chance = 1 / (1 + np.exp(b[..., None, :] - b[..., :, None]))
        slope = counts.sum(-1) - (games * chance).sum(-1) - ridge * b
        weight = games * chance * (1 - chance)
        curvature = weight.sum(-1)[..., None] * eye - weight + ridge * eye
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        # A full step may overshoot from far away; two natural units (a 7 to 1 favourite) never does harm.
        b = b + step * np.minimum(1, 2 / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return b


def bradley_terry(
    games: Sequence[Game], groups: Sequence[str], contenders: Sequence[str], seed: int = 0, bootstraps: int = BOOTSTRAPS
) -> list[Rating]:
    """Every contender's strength on the Elo scale (mean 1000), in the order given.

    Args:
        groups: for each game, what it shares with others that are alike: whole groups are resampled.

    Raises:
        DataError: no games, or one between contenders not listed.
    """
    won, lost = indices(games, contenders)
    cells = (won * len(contenders) + lost).astype(np.intp)
    counts = np.stack(
        [
            _table(cells, len(contenders)),
            *(_table(cells[r], len(contenders)) for r in resamples(groups, bootstraps, seed)),
        ]
    )
    strengths = START + TO_ELO * fit(counts)
    return summary(contenders, strengths[0], strengths[1:], np.concatenate([won, lost]))


def _table(cells: np.ndarray[Any, np.dtype[np.intp]], size: int) -> Array:
    return np.bincount(cells, minlength=size * size).reshape(size, size).astype(float)

"""The Frechet distance against its textbook form with scipy's matrix square root, and the bootstrap's promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from model.errors import DataError
from training.metrics.frechet import Projection, frechet_distance, interval, resamples


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly those asked for."""
    rows = rng.normal(size=(count, len(mean)))
    rows -= rows.mean(axis=0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(rows.T)))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def some_covariance(size: int, rng: np.random.Generator) -> np.ndarray:
    factor = rng.normal(size=(size, size))
    return factor @ factor.T + 0.1 * np.eye(size)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_textbook_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(2, 6))
    one, other = some_covariance(6, rng), some_covariance(6, rng)
    root = np.real(sqrtm(one @ other))
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(one + other - 2 * root)
    rows = with_moments(means[0], one, 40, rng), with_moments(means[1], other, 30, rng)
    assert frechet_distance(*rows) == pytest.approx(expected, rel=1e-8)


def test_one_dimension_has_a_closed_form() -> None:
    rng = np.random.default_rng(0)
    rows = [with_moments(np.array([mean]), np.array([[sd**2]]), 20, rng) for mean, sd in ((1.0, 2.0), (4.0, 0.5))]
    assert frechet_distance(*rows) == pytest.approx((4 - 1) ** 2 + (2 - 0.5) ** 2)


def test_it_needs_no_full_rank() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(10, 50))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows, rows + 2) == pytest.approx(50 * 4)


def test_too_few_clips_are_refused() -> None:
    with pytest.raises(DataError, match="two clips"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))


def test_the_projection_keeps_what_varies_and_measures_the_rest() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 8)) * np.array([9, 5, 1, 0.1, 0.1, 0.1, 0.1, 0.1])
    kept = Projection.fit(rows, 3)(rows)
    assert kept.shape == (40, 4)
    np.testing.assert_allclose(np.sum(kept**2, axis=1), np.sum((rows - rows.mean(axis=0)) ** 2, axis=1))
    largest = np.linalg.eigvalsh(np.cov(rows.T))[::-1][:3]
    np.testing.assert_allclose(kept[:, :3].var(axis=0, ddof=1), largest)


def test_a_shift_outside_of_the_kept_directions_is_seen() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 8)) * np.array([9, 5, 1, 0.1, 0.1, 0.1, 0.1, 0.1])
    project = Projection.fit(rows, 3)
    away = rows + 3 * np.eye(8)[7]
    assert frechet_distance(project(rows), project(away)) > 5


def test_resamples_draw_whole_groups() -> None:
    groups = ["a", "b", "b", "c", "c", "c"]
    for rows in resamples(groups, 50, seed=1):
        drawn = [groups[row] for row in rows]
        assert drawn.count("b") % 2 == 0
        assert drawn.count("c") % 3 == 0
        assert drawn.count("a") + drawn.count("b") // 2 + drawn.count("c") // 3 == 3


@pytest.mark.slow
def test_a_bootstrap_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        values = rng.normal(size=60)
        means = [values[rows].mean() for rows in resamples([str(i) for i in range(60)], 200, seed=trial)]
        low, high = interval(means)
        held += low <= 0 <= high
    assert 175 <= held <= 200

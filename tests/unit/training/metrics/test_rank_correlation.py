"""Spearman's correlation against scipy's, and where it is not defined."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from training.metrics.image import spearman


@pytest.mark.parametrize("seed", range(4))
def test_it_is_scipys_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked, got = np.tile([20, 80, 160, 240], 9), rng.integers(0, 12, 36)
    assert spearman(asked, got) == pytest.approx(spearmanr(asked, got).statistic)


def test_what_never_changes_obeys_nothing() -> None:
    assert spearman(np.array([1, 2, 3]), np.array([5.0, 5.0, 5.0])) == 0.0

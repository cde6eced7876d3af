"""Rank correlation: whether more asked for is more received, whatever the scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

Array = np.ndarray[Any, np.dtype[Any]]


def spearman(asked: Array, got: Array) -> float:
    """Spearman's rank correlation, over all entries, ties sharing their mean rank; 0 where one side never changes."""
    x, y = rankdata(asked.ravel()), rankdata(got.ravel())
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt(np.sum(x**2) * np.sum(y**2)))
    return float(np.sum(x * y)) / scale if scale > 0 else 0.0

"""Held ends: exact at both ends, a plain blend where the network says nothing, and scipy's line between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.interpolate import interp1d

from model.held import hold_ends

CLIPS = array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6).flatmap(
    lambda shape: arrays(np.uint8, (2 * shape[0], *shape[1:], 3))
)


def halves(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decoded frames, and others of which the ends are given."""
    return both[: len(both) // 2], both[len(both) // 2 :]


@given(CLIPS)
def test_both_ends_come_out_exact(both: np.ndarray) -> None:
    decoded, real = halves(both)
    out = hold_ends(decoded, (real[0], real[-1]))
    assert out.dtype == np.uint8 and out.shape == decoded.shape
    assert np.array_equal(out[0], real[0]) and np.array_equal(out[-1], real[-1])


@given(CLIPS)
def test_ends_that_lost_nothing_change_nothing(both: np.ndarray) -> None:
    decoded, _ = halves(both)
    assert np.array_equal(hold_ends(decoded, (decoded[0], decoded[-1])), decoded)


@given(CLIPS)
def test_what_the_ends_lost_is_spread_along_a_line(both: np.ndarray) -> None:
    decoded, real = halves(both)
    lost = interp1d([0, len(decoded) - 1], np.stack([real[k] - decoded[k].astype(float) for k in (0, -1)]), axis=0)
    expected = np.clip(decoded + lost(np.arange(len(decoded))), 0, 255)
    assert np.abs(hold_ends(decoded, (real[0], real[-1])) - expected).max() <= 0.5 + 1e-4


def test_where_the_network_says_nothing_it_is_a_blend() -> None:
    real = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    out = hold_ends(np.full((5, 6, 8, 3), 77, np.uint8), (real[0], real[1]))
    for k in range(5):
        blend = real[0] * (1 - k / 4) + real[1] * (k / 4)
        assert np.abs(out[k] - blend).max() <= 0.5 + 1e-4


def test_one_end_is_not_enough() -> None:
    with pytest.raises(ValueError, match="zip"):
        hold_ends(np.zeros((5, 2, 2, 3), np.uint8), (np.zeros((2, 2, 3), np.uint8),))

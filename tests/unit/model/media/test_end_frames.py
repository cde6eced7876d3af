"""Held ends: exact at both ends, a plain blend where the network says nothing, and scipy's line between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.interpolate import interp1d
from scipy.ndimage import uniform_filter

from model.media.end_frames import WINDOW_RADIUS, restore_end_frames

CLIPS = array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6).flatmap(
    lambda shape: arrays(np.uint8, (2 * shape[0], *shape[1:], 3))
)


def halves(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decoded frames, and others of which the ends are given."""
    return both[: len(both) // 2], both[len(both) // 2 :]


@given(CLIPS, st.sampled_from([0.0, 20.0]))
def test_both_ends_come_out_exact(both: np.ndarray, noise: float) -> None:
    decoded, real = halves(both)
    out = restore_end_frames(decoded, (real[0], real[-1]), noise)
    assert out.dtype == np.uint8 and out.shape == decoded.shape
    assert np.array_equal(out[0], real[0]) and np.array_equal(out[-1], real[-1])


@given(CLIPS)
def test_ends_that_lost_nothing_change_nothing(both: np.ndarray) -> None:
    decoded, _ = halves(both)
    assert np.array_equal(restore_end_frames(decoded, (decoded[0], decoded[-1])), decoded)


@given(CLIPS)
def test_what_the_ends_lost_is_spread_along_a_line(both: np.ndarray) -> None:
    decoded, real = halves(both)
    lost = interp1d([0, len(decoded) - 1], np.stack([real[k] - decoded[k].astype(float) for k in (0, -1)]), axis=0)
    expected = np.clip(decoded + lost(np.arange(len(decoded))), 0, 255)
    assert np.abs(restore_end_frames(decoded, (real[0], real[-1])) - expected).max() <= 0.5 + 1e-4


def test_where_the_network_says_nothing_it_is_a_blend() -> None:
    real = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    out = restore_end_frames(np.full((5, 6, 8, 3), 77, np.uint8), (real[0], real[1]))
    for k in range(5):
        blend = real[0] * (1 - k / 4) + real[1] * (k / 4)
        assert np.abs(out[k] - blend).max() <= 0.5 + 1e-4


def test_what_the_network_adds_counts_by_how_far_the_ends_differ_around_it() -> None:
    """Against scipy's mean over windows, which are whole in the middle of the picture."""
    draw = np.random.default_rng(0)
    ends = draw.integers(0, 256, (2, 48, 56, 3), dtype=np.uint8)
    ends[1, :, :28] = ends[0, :, :28]  # alike on the left
    decoded = draw.integers(0, 256, (5, 48, 56, 3), dtype=np.uint8)
    noise = 25.0
    out = restore_end_frames(decoded, (ends[0], ends[1]), noise).astype(float)
    apart = uniform_filter(np.square(ends[0].astype(float) - ends[1]).mean(-1), 2 * WINDOW_RADIUS + 1)
    gain = (apart / (apart + noise**2))[..., None]
    for k in range(5):
        added = decoded[k] - (decoded[0] * (1 - k / 4) + decoded[-1] * (k / 4))
        expected = np.clip(ends[0] * (1 - k / 4) + ends[1] * (k / 4) + gain * added, 0, 255)
        within = (slice(WINDOW_RADIUS, -WINDOW_RADIUS), slice(WINDOW_RADIUS, -WINDOW_RADIUS))
        assert np.abs(out[k] - expected)[within].max() <= 0.5 + 1e-3
    assert np.array_equal(out[2, :, : 28 - WINDOW_RADIUS], ends[0, :, : 28 - WINDOW_RADIUS]), (
        "where the ends are one, nothing is added"
    )


def test_windows_end_with_the_picture() -> None:
    ends = np.zeros((2, 20, 20, 3), np.uint8)
    ends[1] = 30
    out = restore_end_frames(np.stack([ends[0], np.full_like(ends[0], 90), ends[0]]), (ends[0], ends[1]), noise=30.0)
    assert (out[1] == 15 + 45).all(), "a gain of a half, at the borders as in the middle"


def test_one_end_is_not_enough() -> None:
    with pytest.raises(ValueError, match="zip"):
        restore_end_frames(np.zeros((5, 2, 2, 3), np.uint8), (np.zeros((2, 2, 3), np.uint8),))

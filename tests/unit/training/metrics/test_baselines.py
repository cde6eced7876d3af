"""The baselines are what they are called."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from training.data.motion_bucket import measure_flow
from training.metrics.baselines import slow_zoom, still


@pytest.fixture
def picture() -> np.ndarray:
    soft = gaussian_filter(np.random.default_rng(0).normal(size=(128, 224, 3)), (4, 4, 0))
    return ((soft - soft.min()) / np.ptp(soft) * 255).astype(np.uint8)


def test_a_still_is_the_picture_again(picture: np.ndarray) -> None:
    clip = still(picture, 5)
    assert clip.shape == (5, 128, 224, 3)
    assert (clip == picture).all()


def test_a_zoom_starts_at_the_picture_and_moves_outwards_steadily(picture: np.ndarray) -> None:
    clip = slow_zoom(picture, 14)
    np.testing.assert_array_equal(clip[0], picture)
    # The mean distance of a pixel from the middle of a 128x224 picture is 68.9 pixels: that times the growth a frame.
    expected = 68.9 * (1.10 ** (1 / 13) - 1) / 128 * 8
    assert measure_flow(clip, 8) == pytest.approx(expected, rel=0.2)


def test_a_zoom_enlarges_by_its_factor(picture: np.ndarray) -> None:
    last = slow_zoom(picture, 3, zoom=2.0)[-1]
    middle = picture[32:96, 56:168].astype(float)
    shrunk = last.reshape(64, 2, 112, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - middle).mean() < 3

"""How much of a picture is kept: everything of an exact motion, little of one that melts, and it says how far."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from training.metrics.still_itself import figure, still_itself

Frames = np.ndarray


@pytest.fixture(scope="module")
def picture() -> Frames:
    """A textured picture [96, 160, 3], with room around the window that the tests move."""
    noise = np.random.default_rng(0).integers(20, 235, (30, 46, 3), dtype=np.uint8)
    return cv2.resize(noise, (184, 120), interpolation=cv2.INTER_CUBIC)


def window(picture: Frames, right: float, factor: float = 1.0) -> Frames:
    """[96, 160, 3] of the picture, shifted by so many pixels and enlarged about its middle."""
    matrix = np.array([[factor, 0, 80 - 92 * factor - right], [0, factor, 48 - 60 * factor]], np.float32)
    return cv2.warpAffine(picture, matrix, (160, 96), flags=cv2.INTER_CUBIC)


def test_the_picture_itself_is_whole_and_still(picture: Frames) -> None:
    same = still_itself(window(picture, 0), window(picture, 0))
    assert same.share > 0.999 and same.moved < 0.001


@pytest.mark.parametrize("right", [0.5, 2.0, 4.0])
def test_an_exact_pan_keeps_nearly_all_and_is_as_far_as_it_went(picture: Frames, right: float) -> None:
    found = still_itself(window(picture, 0), window(picture, right))
    assert found.share > 0.93
    assert found.moved == pytest.approx(right / 160, rel=0.2)


def test_an_exact_zoom_keeps_nearly_all(picture: Frames) -> None:
    assert still_itself(window(picture, 0), window(picture, 0, 1.06)).share > 0.93


def test_what_melts_fades_or_turns_to_noise_is_not_kept(picture: Frames) -> None:
    before, after = window(picture, 0), window(picture, 2).copy()
    noise = np.random.default_rng(1).integers(0, 255, (96, 80, 3), dtype=np.uint8)
    after[:, 80:] = noise
    assert 0.4 < still_itself(before, after).share < 0.6, "half of it is noise"
    assert still_itself(before, cv2.GaussianBlur(before, (0, 0), 6)).share < 0.7
    assert still_itself(before, np.clip(before.astype(int) + 30, 0, 255).astype(np.uint8)).share < 0.1


def test_the_figure_has_photographs_beside_a_zoom_and_film_beside_its_own(picture: Frames) -> None:
    still = window(picture, 0)
    pan = np.stack([window(picture, right) for right in (0.0, 1.0, 2.0, 3.0)])
    melted = pan.copy()
    melted[-1] = np.random.default_rng(2).integers(0, 255, pan[-1].shape, dtype=np.uint8)
    blurred = cv2.GaussianBlur(still, (0, 0), 6)[None]
    found = figure([still, still], [pan, melted], [still[None], blurred], [pan], [melted])
    assert found["photographs"] == 2 and found["clips"] == 1
    assert found["film_real_last"] > 0.93 > 0.3 > found["film_last"]
    assert found["last"] == pytest.approx((found["film_real_last"] + found["film_last"]) / 2, abs=1e-6)
    assert found["half_way"] > 0.93 and found["slow_zoom_last"] > 0.9
    assert 0.5 < found["autoencoder"] < 0.85, "one is whole, the other blurred"
    assert found["last_interval"][0] <= found["last"] <= found["last_interval"][1]
    assert figure([], [], [], [], []) == {"photographs": 0, "clips": 0}

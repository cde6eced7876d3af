"""Figures of an extended clip, of clips whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.extension import at_seams, by_second, sharpness, steps

pytest.importorskip("cv2")


def scene(height: int = 96, width: int = 128) -> np.ndarray:
    rng = np.random.default_rng(3)
    coarse = rng.integers(40, 200, (height // 8, width // 8, 3))
    return np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)


def test_a_clip_that_stands_still_stays_itself() -> None:
    frames = np.stack([scene()] * 8)
    seconds = by_second(frames, 4)
    assert len(seconds) == 2
    for one in seconds:
        assert (one.sharp, one.flicker, one.moves) == (1.0, 0.0, 0.0)
        assert one.still > 0.99


def test_what_melts_is_no_longer_itself() -> None:
    first = scene()
    flat = np.broadcast_to(first.mean(axis=(0, 1)), first.shape).astype(np.uint8)
    late = by_second(np.stack([first] * 4 + [flat] * 4), 4)[1]
    assert late.still < 0.5
    assert late.sharp == 0.0
    assert late.moves > 0


def test_a_seam_is_the_step_into_a_window() -> None:
    levels = [10, 11, 12, 20, 21, 30, 31]  # 3 generated frames, windows of 2
    frames = np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])
    assert steps(frames) == [1, 1, 8, 1, 9, 1]
    seams = at_seams(frames, begin=3, window=2)
    assert (seams.seams, seams.clip_mean, seams.clip_largest) == ([8, 9], 1.0, 1)


def test_sharpness_is_the_gradient() -> None:
    ramp = np.broadcast_to((2 * np.arange(20))[None, :, None], (10, 20, 3)).astype(np.uint8)
    assert sharpness(ramp) == pytest.approx(2.0)

"""Motions of a virtual camera are told apart, whatever the picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from training.metrics.temporal import CameraMotion, camera_motion

T, H, W = 8, 64, 112


def filmed(motion: str, seed: int) -> np.ndarray:
    """A window that moves over smooth noise, by 0.4 short sides or a third of its size in all."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 255, (24, 36, 3), dtype=np.uint8))
    picture = small.resize((480, 320), Image.Resampling.BICUBIC)
    frames = []
    for t in range(T):
        share = t / (T - 1) - 0.5
        side = 160 * {"zoom in": 1 - share / 3, "zoom out": 1 + share / 3}.get(motion, 1.0)
        x = 240 + 64 * share * {"pan left": -1, "pan right": 1}.get(motion, 0)
        y = 160 + 64 * share * (motion == "other")
        box = (x - side * W / H / 2, y - side / 2, x + side * W / H / 2, y + side / 2)
        frames.append(np.asarray(picture.resize((W, H), Image.Resampling.BICUBIC, box=box)))
    return np.stack(frames)


@pytest.mark.parametrize("motion", ["pan left", "pan right", "zoom in", "zoom out", "still", "other"])
def test_a_motion_is_called_by_its_name(motion: str) -> None:
    named = [camera_motion(filmed(motion, seed)).name for seed in range(4)]
    assert named == [motion] * 4


def test_sizes_are_in_short_sides() -> None:
    seen = camera_motion(filmed("pan left", 1))
    assert seen.right == pytest.approx(0.4, rel=0.3)
    assert abs(seen.spread) < 0.1


def test_the_largest_part_names_the_whole() -> None:
    assert CameraMotion(0.2, 0.1, -0.15).name == "pan left"
    assert CameraMotion(0.1, 0.1, -0.15).name == "zoom out"
    assert CameraMotion(0.05, -0.05, 0.05).name == "still"

"""A virtual camera's clips move as their names say, by an independent measure of flow."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from PIL import Image

from training.data.camera import MOTIONS, render_camera
from training.data.seeding import generator


def textured() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (12, 21, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((448, 256), Image.Resampling.BICUBIC)


def mean_flow(clip: np.ndarray) -> tuple[float, float]:
    """Mean flow to the right, and outwards from the middle, in pixels a frame."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    start = np.zeros((*grey[0].shape, 2), np.float32)
    flows = [cv2.calcOpticalFlowFarneback(a, b, start.copy(), 0.5, 3, 15, 3, 5, 1.2, 0) for a, b in pairwise(grey)]
    flow = np.mean(flows, 0)
    height, width = grey[0].shape
    y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2])[:, None, None]
    return float(flow[..., 0].mean()), float((flow[..., 0] * x + flow[..., 1] * y).mean() / np.hypot(x, y).mean())


@pytest.mark.parametrize("index", range(10))
def test_a_clip_moves_as_its_name_says(index: int) -> None:
    motion = MOTIONS[index % len(MOTIONS)]
    clip = render_camera(textured(), motion, 14, 64, 112, generator(index))
    assert clip.shape == (14, 64, 112, 3)
    right, outwards = mean_flow(clip)
    if motion == "still":
        assert (clip == clip[0]).all()
    elif motion.startswith("pan"):
        assert abs(right) > 3 * abs(outwards)
        assert (right > 0.5) == (motion == "pan left")
    else:
        assert abs(outwards) > 3 * abs(right)
        assert (outwards > 0.1) == (motion == "zoom in")


def test_a_pan_goes_as_far_as_it_may() -> None:
    for index in range(6):
        clip = render_camera(textured(), "pan right", 14, 64, 112, generator(index), (0.3, 0.45))
        travelled = -mean_flow(clip)[0] * 13 / 64
        assert 0.25 < travelled < 0.5, "heights of the picture"

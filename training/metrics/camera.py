"""Which camera motion a clip shows, from its optical flow: a pan, a zoom, or none.

The flow of each pair of frames is fitted by t + z (p - c): a shift of all points and a spread about the middle. Summed
over the clip, the larger of the two says what it is, and a clip that moves less than `STILL` in all stands still.

Legend: T frames, H, W pixels; h, w of the shrunk frames that flow is measured on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from training.motion import flow_fields

Frames = np.ndarray[Any, np.dtype[np.uint8]]

STILL = 0.06
"""Short sides that a clip moves in all, below which it stands still."""
OTHER = "other"


@dataclass(frozen=True, slots=True)
class CameraMotion:
    """What a clip's flow adds up to, in short sides over the whole clip.

    Args:
        right, down: where what is in the picture goes.
        spread: mean way of a point outwards; below 0 inwards.
    """

    right: float
    down: float
    spread: float

    @property
    def name(self) -> str:
        """`pan left`, `pan right`, `zoom in`, `zoom out`, `still`, or `other` for up and down."""
        size = {"pan": abs(self.right), "tilt": abs(self.down), "zoom": abs(self.spread)}
        kind = max(size, key=lambda one: size[one])
        if size[kind] < STILL:
            return "still"
        if kind == "pan":
            return "pan left" if self.right > 0 else "pan right"  # a camera that turns left sees all go right
        if kind == "zoom":
            return "zoom in" if self.spread > 0 else "zoom out"
        return OTHER


def camera_motion(clip: Frames) -> CameraMotion:
    """The motion of a clip, [T, H, W, 3].

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    sums = np.zeros(3)
    for field in flow_fields(clip):
        height, width = field.shape[:2]
        short = min(height, width)
        y, x = np.mgrid[:height, :width].astype(np.float64)
        x, y = x - (width - 1) / 2, y - (height - 1) / 2
        u, v = field[..., 0].astype(np.float64), field[..., 1].astype(np.float64)
        radius = np.hypot(x, y)
        zoom = float((u * x + v * y).sum() / (radius**2).sum())
        sums += np.array([u.mean(), v.mean(), zoom * radius.mean()]) / short
    return CameraMotion(*(float(one) for one in sums))

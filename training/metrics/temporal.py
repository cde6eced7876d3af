"""Temporal consistency and camera motion of a clip, from its optical flow.

A clip is steady as far as motion explains what changes from frame to frame. Which camera motion it shows (a pan, a
zoom, or none) is fitted: the flow of each pair of frames by t + z (p - c), a shift of all points and a spread about the
middle. Summed over the clip, the larger of the two says what it is, and a clip that moves less than `STILL` in all
stands still.

Legend: T frames, H, W pixels; h, w of the shrunk frames that flow is measured on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.errors import MissingExtra
from model.media.video import Frames
from training.data.motion_bucket import MEASURED_SHORT_SIDE, flow_fields

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


_LUMA = np.array([0.299, 0.587, 0.114])


def flicker(clip: Frames) -> float:
    """Mean jump of the whole frame's brightness between neighbours, in grey levels of 255."""
    brightness = (clip.astype(np.float64) @ _LUMA).mean(axis=(1, 2))
    return float(np.abs(np.diff(brightness)).mean())


def warp_error(clip: Frames) -> float:
    """Mean difference of a frame, moved back along the measured flow, and the frame before, in grey levels of 255.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise MissingExtra("measuring warp error", "train") from None
    height, width = clip.shape[1:3]
    scale = MEASURED_SHORT_SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    grey = [cv2.cvtColor(cv2.resize(one, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY) for one in clip]
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
    errors = []
    for (before, after), field in zip(pairwise(grey), flow_fields(clip), strict=True):
        back = cv2.remap(after, x + field[..., 0], y + field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        errors.append(float(np.abs(back.astype(np.float64) - before).mean()))
    return float(np.mean(errors))

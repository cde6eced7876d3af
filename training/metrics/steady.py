"""How steady a clip is: what changes from frame to frame that motion does not explain.

Legend: T frames, H, W pixels; h, w of the shrunk frames that flow is measured on.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from model.errors import MissingExtra
from training.motion import MEASURED_SHORT_SIDE, flow_fields

Frames = np.ndarray[Any, np.dtype[np.uint8]]

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

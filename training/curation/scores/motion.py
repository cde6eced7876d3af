"""How a clip moves: optical flow at 2 fps (paper, appendix C), and how much of it is stillness or the camera alone.

Farneback's flow (training.data.motion_bucket) between frames half a second apart; each map is stored at a short side
of 16 pixels,
in short sides a second. `flow_mean` is the mean of its magnitude over space and time, the paper's motion score. The
small maps also give

- `static_share`: share of the intervals in which nothing moves: the 95th percentile of the magnitude is below STILL;
- `camera_share`: share of the moving intervals that one affine motion of the whole picture explains, up to UNEXPLAINED
  of the flow's root mean square: the camera pans, zooms or turns and nothing else does.

Legend: h, w of a stored map (the shorter of them 16).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from model.errors import MissingExtra
from model.media.video import Frames
from training.curation.frames import SAMPLED_FPS, ClipFrames
from training.curation.protocols import known_options, tool_version
from training.curation.records import Resources, ScoreRecord, ToolOptions, score_records, unscored_records
from training.data.motion_bucket import FARNEBACK, MEASURED_SHORT_SIDE, flow_fields

Field = np.ndarray[Any, np.dtype[np.float32]]

STORED_SHORT_SIDE = 16
STILL = 0.005
"""Short sides a second below which nothing is seen to move: a tenth of a pixel in 720 lines at 24 fps."""
UNEXPLAINED = 0.25
NAMES = ("flow_mean", "static_share", "camera_share")


def stored_maps(frames: Frames, fps: float) -> Iterator[Field]:
    """Flow maps [h, w, 2] at the stored size, in short sides a second.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise MissingExtra("measuring motion", "train") from None

    for field in flow_fields(frames):
        height, width = field.shape[:2]
        scale = STORED_SHORT_SIDE / min(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        yield cv2.resize(field, size, interpolation=cv2.INTER_AREA) / np.float32(MEASURED_SHORT_SIDE) * np.float32(fps)


def affine_part(field: Field) -> Field:
    """The affine flow nearest to a map [h, w, 2], with outliers (things that move by themselves) given less weight."""
    height, width = field.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    basis = np.stack([np.ones(x.size), x.ravel() / width - 0.5, y.ravel() / height - 0.5], axis=1)
    flat = field.reshape(-1, 2).astype(np.float64)
    weights = np.ones(len(flat))
    fitted = np.zeros_like(flat)
    for _ in range(4):
        root = np.sqrt(weights)[:, None]
        solved, *_ = np.linalg.lstsq(basis * root, flat * root, rcond=None)
        fitted = basis @ solved
        error = np.linalg.norm(flat - fitted, axis=1)
        spread = max(float(np.median(error)), 1e-6)
        weights = 1 / (1 + (error / (2 * spread)) ** 2)
    return fitted.reshape(field.shape).astype(np.float32)


def is_still(field: Field) -> bool:
    """Whether nothing is seen to move in a map."""
    return float(np.quantile(np.hypot(field[..., 0], field[..., 1]), 0.95)) < STILL


def is_camera_only(field: Field) -> bool:
    """Whether one affine motion explains a map."""
    residual = field - affine_part(field)
    return float(np.sqrt(np.mean(residual**2))) < UNEXPLAINED * float(np.sqrt(np.mean(field**2)))


class MotionScorer:
    """Farneback flow at 2 fps and what it tells."""

    name = "motion"
    resources = Resources()

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, ())
        opencv = tool_version("opencv", ("opencv-python-headless", "opencv-python"))
        self._tool = f"{opencv} Farneback {FARNEBACK} at {MEASURED_SHORT_SIDE}, {SAMPLED_FPS:g} fps"

    def score(self, clip: ClipFrames) -> list[ScoreRecord]:
        """`flow_mean` in short sides a second, `static_share` and `camera_share` from 0 to 1."""
        frames = clip.at_fps(SAMPLED_FPS)
        if len(frames) < 2:
            reason = f"the clip gives one frame only at {SAMPLED_FPS:g} fps"
            return unscored_records(clip.clip_id, NAMES, reason, self._tool)
        maps = list(stored_maps(frames, SAMPLED_FPS))
        moving = [field for field in maps if not is_still(field)]
        values = {
            "flow_mean": float(np.mean([np.hypot(field[..., 0], field[..., 1]).mean() for field in maps])),
            "static_share": 1 - len(moving) / len(maps),
        }
        records = score_records(clip.clip_id, values, self._tool)
        if not moving:
            return records + unscored_records(clip.clip_id, ("camera_share",), "nothing moves", self._tool)
        camera = sum(map(is_camera_only, moving)) / len(moving)
        return records + score_records(clip.clip_id, {"camera_share": camera}, self._tool)

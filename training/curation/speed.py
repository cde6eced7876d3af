"""The motion a checkpoint is conditioned on, as a score of each clip: docs/motion.md tells how it is measured.

Stored raw, in short sides a second; the bucket is made of it by `training.data.motion_bucket.MotionMap` when shards
are written.
"""

from __future__ import annotations

import numpy as np

from model.errors import DataError
from training.curation.frames import ClipFrames
from training.curation.records import Resources, ScoreRecord, ToolOptions
from training.data.motion_bucket import FARNEBACK, MEASURED_SHORT_SIDE, measure_flow

NAME = "speed"
SCORE = "motion_flow"


class SpeedScorer:
    """Flow between consecutive frames at the clip's own frame rate."""

    name = NAME
    resources = Resources()

    def __init__(self, _options: ToolOptions) -> None:
        import cv2

        self.tool = f"opencv {cv2.__version__} Farneback{FARNEBACK} at {MEASURED_SHORT_SIDE} px"

    def score(self, clip: ClipFrames) -> list[ScoreRecord]:
        """One figure, `motion_flow`."""
        frames = np.asarray(clip.every_small())
        try:
            value, reason = measure_flow(frames, clip.fps), None
        except DataError as error:
            value, reason = None, error.message
        return [ScoreRecord(clip.clip_id, SCORE, value, reason, self.tool, "")]

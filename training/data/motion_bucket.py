"""Measured motion, and the map between it and the motion bucket a checkpoint is conditioned on.

Flow is Farneback's dense optical flow (2003) between consecutive frames of the clip as it will be seen, on frames
shrunk to a small short side as Blattmann et al. 2023 (arXiv 2311.15127, appendix C) do. Its magnitude is averaged over
space and time, divided by the short side and multiplied by the frame rate: a speed in short sides a second, which
neither the resolution nor the frame rate of the clip changes. The bucket is that speed on a logarithmic scale.
docs/motion.md tells it for people who choose a bucket.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from model.errors import DataError, MissingExtra
from model.media.video import Frames

Field = np.ndarray[Any, np.dtype[np.float32]]

LOWEST_BUCKET, HIGHEST_BUCKET = 1, 255
MEASURED_SHORT_SIDE = 64
FARNEBACK = (0.5, 3, 15, 3, 5, 1.2, 0)
"""pyr_scale, levels, winsize, iterations, poly_n, poly_sigma, flags."""


@dataclass(frozen=True, slots=True)
class MotionMap:
    """The map from flow to bucket; each checkpoint carries the one it was trained with.

        bucket = reference_bucket + buckets_per_octave * log2(flow / reference_flow), clipped to 1..255

    Args:
        reference_flow: the flow, in short sides a second, at `reference_bucket`.
        reference_bucket: the middle of the scale.
        buckets_per_octave: how far the bucket rises when the flow doubles.

    Raises:
        DataError: a constant is not positive and finite.
    """

    reference_flow: float = 0.04
    reference_bucket: float = 128.0
    buckets_per_octave: float = 32.0

    def __post_init__(self) -> None:
        for constant in (self.reference_flow, self.reference_bucket, self.buckets_per_octave):
            if not (math.isfinite(constant) and constant > 0):
                raise DataError(f"a motion map's constants must be positive and finite, not {constant}")

    def bucket(self, flow: float) -> int:
        """The bucket, 1 to 255, of a measured flow in short sides a second; no flow at all is bucket 1.

        Raises:
            DataError: the flow is negative or not finite.
        """
        if not math.isfinite(flow) or flow < 0:
            raise DataError(f"flow must be finite and not negative, not {flow}")
        if flow == 0:
            return LOWEST_BUCKET
        octaves = math.log2(flow) - math.log2(self.reference_flow)
        exact = self.reference_bucket + self.buckets_per_octave * octaves
        return round(min(max(exact, LOWEST_BUCKET), HIGHEST_BUCKET))

    def flow(self, bucket: float) -> float:
        """The flow, in short sides a second, that a bucket stands for (its middle).

        Raises:
            DataError: the bucket is outside 1 to 255.
        """
        if not LOWEST_BUCKET <= bucket <= HIGHEST_BUCKET:
            raise DataError(f"a motion bucket is from {LOWEST_BUCKET} to {HIGHEST_BUCKET}, not {bucket}")
        return float(self.reference_flow * 2 ** ((bucket - self.reference_bucket) / self.buckets_per_octave))


def measure_flow(frames: Frames, fps: float, short_side: int = MEASURED_SHORT_SIDE) -> float:
    """Mean optical flow of a clip, in short sides a second.

    Args:
        frames: [T, H, W, 3] RGB, T >= 2, cropped and sampled in time as the clip will be seen.
        fps: frames a second the clip is seen at (not the film's, where frames were left out).
        short_side: pixels of the shorter side that flow is measured at. A `MotionMap` belongs to one value: flow
            measured at 128 reads about a fifth lower than at 64.

    Raises:
        DataError: not a clip of at least two RGB frames, or fps is not positive.
        MissingExtra: OpenCV is not installed.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2 or frames.dtype != np.uint8:
        raise DataError(f"flow needs [T >= 2, H, W, 3] uint8 frames, not {frames.shape} {frames.dtype}")
    if not (math.isfinite(fps) and fps > 0):
        raise DataError(f"fps must be positive, not {fps}")
    speeds = [float(np.hypot(field[..., 0], field[..., 1]).mean()) for field in flow_fields(frames, short_side)]
    return sum(speeds) / len(speeds) / short_side * fps


def flow_fields(frames: Frames, short_side: int = MEASURED_SHORT_SIDE) -> Iterator[Field]:
    """Farneback's dense flow between consecutive frames, [h, w, 2] each, in pixels of the shrunk frames.

    Args:
        frames: [T, H, W, 3] RGB.
        short_side: pixels of the shorter side that flow is measured at.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise MissingExtra("measuring motion", "train") from None

    height, width = frames.shape[1:3]
    scale = short_side / min(height, width)
    size = (round(width * scale), round(height * scale))
    grey = [cv2.cvtColor(cv2.resize(one, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY) for one in frames]
    for before, after in pairwise(grey):
        field = np.zeros((size[1], size[0], 2), np.float32)
        cv2.calcOpticalFlowFarneback(before, after, field, *FARNEBACK)
        yield field

"""A clip's frames, read from its file when somebody asks for them, in one pass for the samplings that scorers use.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from model.errors import DataError
from model.media.video import Frames
from training.curation.records import ClipRecord
from training.data.display import DisplayedFrame, displayed_frames
from training.data.motion_bucket import MEASURED_SHORT_SIDE

"""[T, H, W, 3], RGB, turned as a player shows them."""

SAMPLED_FPS = 2.0
"""What Blattmann et al. 2023 sample optical flow at (appendix C)."""


@dataclass(frozen=True, slots=True)
class _Pass:
    small: Frames
    sampled: Frames
    ends: Frames
    times: NDArray[np.float64]


class ClipFrames:
    """One clip's frames.

    Args:
        path: the clip's file.
        clip: its record.

    Every method raises DataError where the file gives no frames.
    """

    def __init__(self, path: Path, clip: ClipRecord) -> None:
        self.path = path
        self.clip = clip

    @property
    def clip_id(self) -> str:
        """The clip's id."""
        return self.clip.clip_id

    @property
    def fps(self) -> float:
        """The clip's own average frames a second."""
        return float(self.clip.fps)

    def first_middle_last(self) -> Frames:
        """[3, H, W, 3] at full size; the same frame thrice where there is one only."""
        return self._read.ends

    def at_fps(self, fps: float = SAMPLED_FPS) -> Frames:
        """[T, H, W, 3] at full size: what is shown at 0, 1/fps, 2/fps, ... seconds; never empty.

        2 fps comes from the pass that all samplings share; another rate decodes the clip again.
        """
        if not fps > 0:
            raise DataError(f"frames a second must be positive, not {fps}")
        if fps == SAMPLED_FPS:
            return self._read.sampled
        pictures = [frame.rgb() for frame in _shown_every(self._decode(), 1 / fps)]
        if not pictures:
            raise DataError(f"{self.path} holds no frames that can be decoded")
        return np.stack(pictures)

    def every_small(self) -> Frames:
        """[T, h, w, 3]: every frame, at a short side of 64 pixels (what training.data.motion_bucket measures at)."""
        return self._read.small

    def times_s(self) -> NDArray[np.float64]:
        """[T]: when each frame is shown, in seconds from the clip's first."""
        return self._read.times

    @functools.cached_property
    def _read(self) -> _Pass:
        small: list[Frames] = []
        sampled: list[Frames] = []
        times: list[float] = []
        middle = max(0, (self.clip.frames - 1) // 2)
        middle_frame: Frames | None = None
        last: DisplayedFrame | None = None
        for frame, time in self._decode():
            if last is not None:
                sampled += [last.rgb()] * _due(len(sampled), 1 / SAMPLED_FPS, time - _ROUNDING_S)
            if len(times) == middle:
                middle_frame = frame.rgb()
            small.append(frame.with_short_side(MEASURED_SHORT_SIDE))
            times.append(time)
            last = frame
        if last is None:
            raise DataError(f"{self.path} holds no frames that can be decoded")
        final = last.rgb()
        sampled += [final] * _due(len(sampled), 1 / SAMPLED_FPS, times[-1] + _ROUNDING_S)
        ends = np.stack([sampled[0], final if middle_frame is None else middle_frame, final])
        return _Pass(np.stack(small), np.stack(sampled), ends, np.array(times))

    def _decode(self) -> Iterator[tuple[DisplayedFrame, float]]:
        return decode(self.path)


_ROUNDING_S = 1e-3


def decode(path: Path) -> Iterator[tuple[DisplayedFrame, float]]:
    """Every frame of a video file that can be decoded, with its time in seconds from the first.

    Raises:
        DataError: the file cannot be opened, has no video, is in colours that nothing here converts, or breaks off.
    """
    try:
        with av.open(str(path)) as container:
            first: float | None = None
            for shown in displayed_frames(container):
                if shown.frame.pts is None:
                    continue
                time = shown.frame.time
                first = time if first is None else first
                yield shown, time - first
    except FFmpegError as error:
        raise DataError(f"{path} cannot be decoded: {error.strerror}") from error


def _due(taken: int, step_s: float, until_s: float) -> int:
    """How many of the moments `taken * step_s`, and so on, lie before `until_s`."""
    return max(0, math.ceil(until_s / step_s) - taken)


def _shown_every(frames: Iterator[tuple[DisplayedFrame, float]], step_s: float) -> Iterator[DisplayedFrame]:
    taken, last, seen = 0, None, 0.0
    for frame, time in frames:
        due = 0 if last is None else _due(taken, step_s, time - _ROUNDING_S)
        for _ in range(due):
            assert last is not None
            yield last
        taken, last, seen = taken + due, frame, time
    if last is not None:
        for _ in range(_due(taken, step_s, seen + _ROUNDING_S)):
            yield last

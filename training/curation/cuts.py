"""The second stage: where a source's cuts are, by a cascade of PySceneDetect's detectors at three frame rates.

As in appendix C of Blattmann et al. 2023, detectors that see every frame find hard cuts and fades; two more see a few
frames a second, so that a slow change becomes a large one, and find dissolves. What they propose is then looked at in
all frames (training.curation.cuts_verify): a flash is no cut, and motion is no dissolve.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from model.errors import MissingExtra
from model.media.video import Frames
from training.curation.cuts_verify import Thumbs, Transition, find_dissolve, find_fade, is_flash, is_sudden
from training.curation.frames import decode
from training.curation.records import Cut, CutKind

SMALL_SHORT_SIDE = 90
THUMB = (32, 18)


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the cascade.

    Args:
        fps: frames a second it sees; 0 for all.
        detector: PySceneDetect's class; `options` its arguments.
        reach_s: how far beyond a candidate a transition may extend.
    """

    name: str
    fps: float
    detector: str
    options: tuple[tuple[str, Any], ...]
    reach_s: float

    @property
    def description(self) -> str:
        """The detector with its settings, for the table of cuts."""
        rate = f"{self.fps:g} fps" if self.fps else "every frame"
        return f"{self.detector}({', '.join(f'{k}={v}' for k, v in self.options)}) at {rate}"


HARD = Level("full", 0, "AdaptiveDetector", (("adaptive_threshold", 3.0), ("min_scene_len", 2)), 0.25)
FADES = (
    Level("full", 0, "ThresholdDetector", (("threshold", 12), ("min_scene_len", 2)), 0),
    Level("full", 0, "ThresholdDetector", (("threshold", 243), ("min_scene_len", 2), ("method", 1)), 0),
)
MIDDLE = Level("middle", 6, "ContentDetector", (("threshold", 14.0), ("min_scene_len", 1)), 0.7)
SLOW = Level("slow", 1.5, "ContentDetector", (("threshold", 20.0), ("min_scene_len", 1)), 2.0)
CASCADE = (HARD, *FADES, MIDDLE, SLOW)


@dataclass(frozen=True, slots=True)
class SourceScan:
    """What one pass over a source leaves: thumbnails and times of all frames, candidates of each level.

    Args:
        proposals: (level, first frame, last frame, score): somewhere between the two the picture changed.
    """

    thumbs: Thumbs
    times_s: tuple[float, ...]
    proposals: tuple[tuple[Level, int, int, float], ...]


class _Running:
    """A detector that is fed the frames its level sees, and remembers which those were."""

    def __init__(self, level: Level) -> None:
        detectors, timecode = _scenedetect()
        self.level = level
        self.detector: Any = getattr(detectors, level.detector)(**dict(level.options))
        self.timecode = timecode
        self.frame_numbers: list[int] = []
        self.scores: list[float] = []
        self.proposals: list[tuple[Level, int, int, float]] = []
        self.last: Any = None

    def see(self, index: int, time_s: float, bgr: Frames) -> None:
        """Show it a frame; a level with a rate of its own skips most."""
        if self.level.fps and time_s * self.level.fps < len(self.frame_numbers) - 1e-6:
            return
        # Frames are numbered as this level sees them; how long they last does not matter to the detectors.
        self.last = self.timecode(len(self.frame_numbers), fps=24.0)
        self.frame_numbers.append(index)
        cuts = self.detector.process_frame(self.last, bgr)
        self.scores.append(float(getattr(self.detector, "_frame_score", None) or 0.0))
        self._keep(cuts)

    def close(self) -> None:
        """No more frames."""
        if self.last is not None:
            self._keep(self.detector.post_process(self.last))

    def _keep(self, cuts: Iterable[Any]) -> None:
        for cut in cuts:
            k = min(cut.frame_num, len(self.frame_numbers) - 1)
            self.proposals.append(
                (self.level, self.frame_numbers[max(0, k - 1)], self.frame_numbers[k], self.scores[k])
            )


def _scenedetect() -> tuple[Any, Any]:
    try:
        from scenedetect import FrameTimecode, detectors
    except ImportError:
        raise MissingExtra("finding cuts", "curate") from None
    return detectors, FrameTimecode


def small_frames(path: Path, short_side: int = SMALL_SHORT_SIDE) -> Iterator[tuple[Frames, float]]:
    """Every frame [H, W, 3] RGB of a file, shrunk, with its time in seconds.

    Raises:
        DataError: the file cannot be decoded, or breaks off.
    """
    for frame, time in decode(path):
        yield frame.with_short_side(short_side, least=8), time


def scan(frames: Iterable[tuple[Frames, float]], levels: tuple[Level, ...] = CASCADE) -> SourceScan:
    """Show all frames to the detectors of all levels, in one pass."""
    import cv2

    running = [_Running(level) for level in levels]
    thumbs: list[Any] = []
    times: list[float] = []
    for index, (frame, time) in enumerate(frames):
        bgr = np.ascontiguousarray(frame[..., ::-1])
        for one in running:
            one.see(index, time, bgr)
        thumbs.append(cv2.resize(frame, THUMB, interpolation=cv2.INTER_AREA))
        times.append(time)
    for one in running:
        one.close()
    array = np.stack(thumbs).reshape(len(thumbs), -1).astype(np.float32) / np.float32(255)
    return SourceScan(array, tuple(times), tuple(p for one in running for p in one.proposals))


def decide_cuts(scanned: SourceScan, source: str) -> list[Cut]:
    """The cuts among the candidates, in order of time: fades first, then hard cuts, then dissolves between those."""
    soft: list[tuple[Transition, Level, float]] = []
    for level, _, last, score in scanned.proposals:
        fade = find_fade(scanned.thumbs, last) if level in FADES else None
        if fade is not None:
            _add(soft, fade, level, score)
    hard = _hard_cuts(scanned, soft)
    for level, first, last, score in scanned.proposals:
        if level in FADES or any(first < frame <= last for frame in hard):
            continue
        transition = find_dissolve(
            scanned.thumbs, first, last, _reach(scanned, level), _bounds(scanned, hard, soft, last)
        )
        if transition is not None:
            _add(soft, transition, level, score)
    cuts = [_soft_cut(scanned, source, *one) for one in soft]
    cuts += [_hard_cut(scanned, source, frame, score) for frame, score in hard.items()]
    return sorted(cuts, key=lambda cut: (cut.time_s, cut.kind))


def _hard_cuts(scanned: SourceScan, soft: list[tuple[Transition, Level, float]]) -> dict[int, float]:
    """Frames at which a hard cut is, with the detector's score; short dissolves that looked like one go to `soft`."""
    hard: dict[int, float] = {}
    for level, first, last, score in scanned.proposals:
        if level != HARD or last == 0 or any(_within(scanned, transition, last) for transition, _, _ in soft):
            continue
        if is_flash(scanned.thumbs, last):
            continue
        transition = None
        if not is_sudden(scanned.thumbs, last):
            transition = find_dissolve(scanned.thumbs, first, last, _reach(scanned, level), (0, len(scanned.thumbs)))
        if transition is None:
            hard[last] = score
        else:
            _add(soft, transition, level, score)
    return hard


def _within(scanned: SourceScan, transition: Transition, frame: int) -> bool:
    """Whether a change at `frame` belongs to a transition; where a fade begins or ends at once, a hard cut is."""
    bounding = (
        transition.kind == "fade" and frame in (transition.start, transition.end) and is_sudden(scanned.thumbs, frame)
    )
    return transition.start - 1 <= frame <= transition.end and not bounding


def _reach(scanned: SourceScan, level: Level) -> int:
    fps = (len(scanned.times_s) - 1) / max(scanned.times_s[-1], 1e-6)
    return max(4, round(level.reach_s * fps))


def _bounds(
    scanned: SourceScan, hard: dict[int, float], soft: list[tuple[Transition, Level, float]], near: int
) -> tuple[int, int]:
    """The frames [low, high) around `near` in which no cut is known."""
    edges = [0, len(scanned.thumbs), *hard]
    edges += [edge for transition, _, _ in soft for edge in (transition.start, transition.end)]
    return max(edge for edge in edges if edge <= near), min(edge for edge in edges if edge > near)


def _add(soft: list[tuple[Transition, Level, float]], transition: Transition, level: Level, score: float) -> None:
    if not any(_overlap(transition, other) for other, _, _ in soft):
        soft.append((transition, level, score))


def _overlap(a: Transition, b: Transition) -> bool:
    return a.start < b.end and b.start < a.end


def _soft_cut(scanned: SourceScan, source: str, transition: Transition, level: Level, score: float) -> Cut:
    times = scanned.times_s
    start, end = times[transition.start], times[min(transition.end, len(times) - 1)]
    kind = cast(CutKind, transition.kind)
    return Cut(source, (start + end) / 2, start, end, kind, score, level.description, level.name)


def _hard_cut(scanned: SourceScan, source: str, frame: int, score: float) -> Cut:
    time = scanned.times_s[frame]
    return Cut(source, time, time, time, "hard", score, HARD.description, HARD.name)


def find_cuts(path: Path, source: str) -> list[Cut]:
    """The cuts of a file, by the cascade.

    Raises:
        DataError: the file cannot be decoded, or breaks off.
        MissingExtra: PySceneDetect is not installed.
    """
    return decide_cuts(scan(small_frames(path)), source)


Detector = Callable[[Path, str], list[Cut]]

"""Where clips begin and end: within shots, at places where packets can be copied as they are.

A copy can begin at a keyframe only. It can end wherever every frame decoded so far is shown before every later one,
which is more often than at keyframes. What a shot loses by that is measured, and where it would lose more than is
allowed, the clip's edges are encoded anew.

Frames are counted in the order they are shown; [a, b) is from frame a up to, not including, frame b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.curation.probe import PacketIndex
from training.curation.records import Cut


@dataclass(frozen=True, slots=True)
class ClipRules:
    """What a clip may be.

    Args:
        min_s, max_s: its length; a longer shot becomes several clips, what is left over below `min_s` is dropped.
        max_lost_s: how much may be lost at each end of a shot before edges are encoded anew; None: never do.
        end_on_keyframes: end only where the next keyframe begins, as the paper's clips do.
    """

    min_s: float = 2.0
    max_s: float = 10.0
    max_lost_s: float | None = None
    end_on_keyframes: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """One clip to be: frames [start, end), of which [copy_start, copy_end) can be copied."""

    start: int
    end: int
    copy_start: int
    copy_end: int

    @property
    def exact(self) -> bool:
        """Whether all of it can be copied."""
        return (self.start, self.end) == (self.copy_start, self.copy_end)


@dataclass(frozen=True, slots=True)
class Timeline:
    """When frames are shown, and where copies may begin and end.

    Args:
        at_s: [T + 1] when each frame is shown, and when the last one is over.
        starts, ends: frames at which a copy may begin, or before which it may end; ascending.
    """

    at_s: NDArray[np.float64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def span_s(self, first: int, last: int) -> float:
        """Seconds from frame `first` to frame `last`."""
        return float(self.at_s[last] - self.at_s[first])


def timeline(index: PacketIndex, *, end_on_keyframes: bool = False) -> Timeline:
    """The timeline of a file's packets."""
    count = len(index.pts)
    shown = np.sort(index.pts)
    at = np.append(shown, index.end) - index.first
    starts = np.unique(np.searchsorted(shown, index.pts[index.key]))
    highest = np.maximum.accumulate(index.pts)
    lowest = np.minimum.accumulate(index.pts[::-1])[::-1]
    clean = highest[:-1] < lowest[1:]
    if end_on_keyframes:
        clean = clean & index.key[1:]
    ends = np.append(np.flatnonzero(clean) + 1, count)
    return Timeline(at * float(index.time_base), starts, ends)


def shots(line: Timeline, cuts: Sequence[Cut]) -> list[tuple[int, int]]:
    """The stretches of frames between cuts, mixed frames left out."""
    count = len(line.at_s) - 1
    # A cut's time is a frame's; half a frame either way absorbs rounding.
    half = float(np.median(np.diff(line.at_s))) / 2
    edges = [0]
    for cut in sorted(cuts, key=lambda one: one.start_s):
        edges += [int(np.searchsorted(line.at_s[:-1], moment - half)) for moment in (cut.start_s, cut.end_s)]
    edges.append(count)  # 0, (a cut's start, its end), ..., the last frame's end: shots lie between the pairs
    ordered = np.maximum.accumulate(np.clip(edges, 0, count)).tolist()
    return [(a, b) for a, b in zip(ordered[0::2], ordered[1::2], strict=True) if a < b]


def plan(line: Timeline, parts: Sequence[tuple[int, int]], rules: ClipRules) -> list[Span]:
    """The clips of shots."""
    spans: list[Span] = []
    for first, last in parts:
        at = first
        while at < last:
            span = _next(line, at, last, rules)
            if span is None:
                break
            spans.append(span)
            at = span.end
    return spans


def _next(line: Timeline, at: int, last: int, rules: ClipRules) -> Span | None:
    """The clip that begins at frame `at` or soon after, in a shot that ends before frame `last`."""
    key = _at_least(line.starts, at)
    start = key if key is not None and key < last else None
    if rules.max_lost_s is not None and (start is None or line.span_s(at, start) > rules.max_lost_s):
        start = at
    if start is None or line.span_s(start, last) < rules.min_s:
        return None
    remaining_s = line.span_s(start, last)
    if remaining_s > rules.max_s:
        return _piece(line, start, last, remaining_s / math.ceil(remaining_s / rules.max_s), rules)
    end = _at_most(line.ends, last)
    if rules.max_lost_s is not None and (end is None or line.span_s(end, last) > rules.max_lost_s):
        end = last
    return _checked(line, start, end, rules)


def _piece(line: Timeline, start: int, last: int, wanted_s: float, rules: ClipRules) -> Span | None:
    """The first piece of a long shot: it ends at the keyframe nearest to `wanted_s`, so that the next loses nothing."""
    lengths = line.at_s[line.starts] - line.at_s[start]
    fits = line.starts[(lengths >= rules.min_s) & (lengths <= rules.max_s) & (line.starts <= last)]
    clean = fits[np.isin(fits, line.ends)]
    if len(clean):
        off = np.abs(line.at_s[clean] - line.at_s[start] - wanted_s)
        return _checked(line, start, int(clean[off.argmin()]), rules)
    limit = int(np.searchsorted(line.at_s, line.at_s[start] + rules.max_s + 1e-9, side="right")) - 1
    end = limit if rules.max_lost_s is not None else _at_most(line.ends, limit)
    return _checked(line, start, end, rules)


def _checked(line: Timeline, start: int, end: int | None, rules: ClipRules) -> Span | None:
    if end is None or end <= start or line.span_s(start, end) < rules.min_s:
        return None
    key, clean = _at_least(line.starts, start), _at_most(line.ends, end)
    if key is None or clean is None or clean <= key:
        return Span(start, end, end, end)
    return Span(start, end, key, clean)


def _at_least(frames: NDArray[np.int64], frame: int) -> int | None:
    k = int(np.searchsorted(frames, frame))
    return int(frames[k]) if k < len(frames) else None


def _at_most(frames: NDArray[np.int64], frame: int) -> int | None:
    k = int(np.searchsorted(frames, frame, side="right")) - 1
    return int(frames[k]) if k >= 0 else None


@dataclass(frozen=True, slots=True)
class Loss:
    """Where the seconds of a source went: into clips, to the nearest place for a copy, to the limits on length."""

    kept_s: float
    snapped_s: float
    short_s: float


def loss(line: Timeline, parts: Sequence[tuple[int, int]], spans: Sequence[Span], rules: ClipRules) -> Loss:
    """What shots lose: `short_s` in shots too short for any clip; `snapped_s` everything else that no clip holds."""
    short = sum(line.span_s(a, b) for a, b in parts if line.span_s(a, b) < rules.min_s)
    in_clips_s = sum(line.span_s(span.start, span.end) for span in spans)
    return Loss(in_clips_s, sum(line.span_s(a, b) for a, b in parts) - in_clips_s - short, short)

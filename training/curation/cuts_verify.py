"""What a candidate of a detector really is: a hard cut, a flash, a fade, a dissolve, or only motion.

Everything is judged on thumbnails, 32 x 18 RGB, of every frame. While one picture dissolves into another, each frame is
a mixture of the two; while things merely move, frames between are as unlike both as both are unlike each other.

Legend: T frames, D = 18 * 32 * 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Thumbs = NDArray[np.float32]
"""[T, D] in 0..1."""

FLASH_FRAMES = 6
"""A flash is over, at the latest, after so many frames."""
SAME_SHARE = 0.4
"""After a flash the picture differs from the one before it by less than this share of what the flash changed."""
MIXED = 0.35
"""Largest distance of a frame from the mixture that a dissolve would show, as a share of how far its ends are apart."""
SAME_PICTURE = 0.8
"""Ends that correlate more than this are one picture that changed its light or moved a little, not two."""
SUDDEN = 0.5
"""Between two frames of a transition no more than this share of the whole change happens."""
CALM = 0.6
"""On one side at least, a transition's neighbours change less than this share of what it changes, in as many frames."""
DARK = 12 / 255
BRIGHT = 243 / 255
SHORTEST = 3
"""A transition mixes at least so many frames; what is shorter is a hard cut."""


@dataclass(frozen=True, slots=True)
class Transition:
    """Frames [start, end) are mixed; `error` is how far they are from an exact mixture (0: not at all)."""

    start: int
    end: int
    kind: str
    error: float


def is_flash(thumbs: Thumbs, cut: int) -> bool:
    """Whether the change at frame `cut` is undone within a few frames, or undoes one."""
    return _returns(thumbs, cut, 1) or _returns(thumbs, cut, -1)


def _returns(thumbs: Thumbs, cut: int, way: int) -> bool:
    near, far = (cut - 1, cut) if way > 0 else (cut, cut - 1)
    jump = _apart(thumbs[near], thumbs[far])
    after = range(far + way, far + way * (FLASH_FRAMES + 1), way)
    distances = [_apart(thumbs[near], thumbs[k]) for k in after if 0 <= k < len(thumbs)]
    return bool(distances) and min(distances) < SAME_SHARE * jump


def _apart(a: Thumbs, b: Thumbs) -> float:
    return float(np.abs(a - b).mean())


def is_sudden(thumbs: Thumbs, cut: int) -> bool:
    """Whether most of what changes around frame `cut` changes at it, from one frame to the next."""
    before, after = thumbs[max(0, cut - 3)], thumbs[min(len(thumbs) - 1, cut + 2)]
    return _apart(thumbs[cut - 1], thumbs[cut]) > SUDDEN * _apart(before, after)


def find_dissolve(thumbs: Thumbs, first: int, last: int, reach: int, bounds: tuple[int, int]) -> Transition | None:
    """The dissolve that made frames `first` and `last` differ, if one did.

    Its extent is that of the straight ramp that fits best how far each frame has gone from the picture before to the
    picture after. Both pictures move on, so it is looked for nearby first, and up to `reach` frames away.

    Args:
        bounds: frames [low, high) in which no other cut lies.
    """
    found = [_dissolve_within(thumbs, first, last, max(2, reach // part), bounds) for part in (4, 2, 1)]
    return min((one for one in found if one is not None), key=lambda one: one.error, default=None)


def _dissolve_within(thumbs: Thumbs, first: int, last: int, reach: int, bounds: tuple[int, int]) -> Transition | None:
    low, high = max(bounds[0], first - reach), min(bounds[1], last + reach + 1)
    window = thumbs[low:high]
    if len(window) < SHORTEST + 2:
        return None
    ends = max(1, min(reach // 4, len(window) // 4))
    before, after = window[:ends].mean(0), window[-ends:].mean(0)
    way = after - before
    length = float(way @ way)
    if length <= 1e-6 * len(way):
        return None
    share = (window - before) @ way / length
    start, end = _ramp(share)
    if end - start < SHORTEST or np.abs(np.diff(share[start - 1 : end + 1])).max() > SUDDEN:
        return None
    error = _judged(thumbs, low + start, low + end)
    return None if error is None else Transition(low + start, low + end, "dissolve", error)


def _ramp(share: NDArray[np.float32]) -> tuple[int, int]:
    """[start, end) of the mixed frames of the clamped straight line from 0 to 1 that fits best."""
    t = np.arange(len(share), dtype=np.float32)
    best = (np.inf, 0, 0)
    for start in range(len(share) - 1):
        stops = np.arange(start + 1, len(share))[:, None]
        lines = np.clip((t - start) / (stops - start), 0, 1)
        errors = ((lines - share) ** 2).sum(1)
        k = int(errors.argmin())
        if errors[k] < best[0]:
            best = (float(errors[k]), start, start + 1 + k)
    return best[1] + 1, best[2]


def _judged(thumbs: Thumbs, start: int, end: int) -> float | None:
    """How far the frames [start, end) are from mixtures of their neighbours outside; None if that is no dissolve."""
    a, b = max(0, start - 1), min(len(thumbs) - 1, end)
    before, after = thumbs[a], thumbs[b]
    apart = _spread(before, after)
    if apart < 0.02 or _alike(before, after) > SAME_PICTURE:
        return None
    share = ((np.arange(start, end) - a) / (b - a))[:, None]
    errors = np.sqrt(((thumbs[start:end] - ((1 - share) * before + share * after)) ** 2).mean(1)) / apart
    error = float(np.median(errors))
    step = b - a
    sides = _spread(before, thumbs[max(0, a - step)]), _spread(after, thumbs[min(len(thumbs) - 1, b + step)])
    return error if error < MIXED and min(sides) < CALM * apart else None


def _spread(a: Thumbs, b: Thumbs) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()))


def _alike(a: Thumbs, b: Thumbs) -> float:
    """Correlation of two pictures: 1 for one picture in another light."""
    x, y = a - a.mean(), b - b.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 1e-6 else 0.0


def find_fade(thumbs: Thumbs, near: int) -> Transition | None:
    """The fade through black or white around frame `near`: from the first frame that darkens to the last that does not.

    A picture that goes into the plain frames or out of them at once does so by a hard cut, which bounds the fade; None
    where it does both.
    """
    level = thumbs.mean(1)
    for plain, sign in ((level < DARK, 1.0), (level > BRIGHT, -1.0)):
        if plain[near]:
            first, last = near, near
            while first > 0 and plain[first - 1]:
                first -= 1
            while last < len(level) - 1 and plain[last + 1]:
                last += 1
            start, end = _slope(sign * level, first, -1), _slope(sign * level, last, 1)
            into, out = first - start >= SHORTEST, end - last >= SHORTEST
            if not into and not out:
                return None
            return Transition(start if into else first, (end if out else last) + 1, "fade", 0.0)
    return None


def _slope(level: NDArray[np.float32], frame: int, step: int) -> int:
    """The farthest frame from `frame` up to which the level keeps rising noticeably."""
    while 0 <= frame + step < len(level) and level[frame + step] > level[frame] + 0.002:
        frame += step
    return frame

"""Footage made up on the spot, whose cuts are known to the frame: what cut detectors are measured on.

Scenes (textured grounds with moving things, seen by a camera that stands, drifts or pans fast) are joined by hard cuts,
dissolves and fades of several lengths. Within scenes there are flashes and fast pans, which are no cuts.

Legend: H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from training.curation.records import CutKind

Picture = NDArray[np.uint8]
Scene = Callable[[int], Picture]
"""The picture [H, W, 3] of a scene's frame 0, 1, 2, ...; there is one for every number."""


@dataclass(frozen=True, slots=True)
class Join:
    """How one scene gives way to the next.

    Args:
        length: mixed frames of a dissolve; of a fade, on each side.
        white: whether a fade goes through white instead of black.
    """

    kind: CutKind
    length: int = 0
    white: bool = False


@dataclass(frozen=True, slots=True)
class Truth:
    """A cut as it was made: frames [start, end) are mixed; a hard cut has none, and `start` is its first new frame."""

    kind: CutKind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Part:
    """A scene, for so many frames of its own (mixed ones come on top), and the join that follows it.

    Args:
        flash: frame at which a flash of two white frames is shown, or None.
    """

    scene: Scene
    frames: int
    join: Join
    flash: int | None = None


PLAIN_FRAMES = 3
"""How long a fade stays black or white."""


def render(parts: Sequence[Part]) -> tuple[Iterator[Picture], list[Truth], int]:
    """The frames of the parts in order (the last one's join is left out), the truth, and how many frames there are."""
    truths: list[Truth] = []
    at = 0
    for part in parts[:-1]:
        at += part.frames
        join = part.join
        mixed = {"hard": 0, "dissolve": join.length, "fade": 2 * join.length + PLAIN_FRAMES}[join.kind]
        truths.append(Truth(join.kind, at, at + mixed))
        at += mixed
    return _frames(parts), truths, at + parts[-1].frames


def _frames(parts: Sequence[Part]) -> Iterator[Picture]:
    begun = 0
    for k, part in enumerate(parts):
        for t in range(part.frames):
            picture = part.scene(begun + t)
            flashing = part.flash is not None and 0 <= t - part.flash < 2
            yield _mix(picture, np.full_like(picture, 255), 0.85) if flashing else picture
        if k + 1 < len(parts):
            begun = yield from _joined(part, begun + part.frames, parts[k + 1].scene)


def _joined(part: Part, at: int, following: Scene) -> Generator[Picture, None, int]:
    """The mixed frames; returns how many frames of the next scene were used up."""
    join = part.join
    steps = [(j + 1) / (join.length + 1) for j in range(join.length)]
    if join.kind == "dissolve":
        for j, share in enumerate(steps):
            yield _mix(part.scene(at + j), following(j), share)
        return join.length
    if join.kind == "fade":
        plain = np.full_like(part.scene(at), 255 if join.white else 0)
        for j, share in enumerate(steps):
            yield _mix(part.scene(at + j), plain, share)
        yield from [plain] * PLAIN_FRAMES
        for j, share in enumerate(steps):
            yield _mix(plain, following(j), share)
        return join.length
    return 0


def _mix(a: Picture, b: Picture, share: float) -> Picture:
    return np.round(a * (1 - share) + b * share).astype(np.uint8)


def random_scene(seed: int, height: int, width: int, pace: float) -> Scene:
    """A scene drawn from a seed.

    Args:
        pace: how far the camera goes in a frame, in widths; 0.1 is a fast pan.
    """
    draw = np.random.default_rng(seed)
    ground = _ground(draw, 2 * height, 4 * width)
    heading = draw.uniform(-0.3, 0.3)
    things = [_Thing.drawn(draw, height, width) for _ in range(int(draw.integers(1, 5)))]

    def picture(frame: int) -> Picture:
        x = _bounced(0.3 * width + frame * pace * width, 3 * width)
        y = _bounced(0.5 * height + frame * pace * width * heading, height)
        view = ground[y : y + height, x : x + width].copy()
        for thing in things:
            thing.paint(view, frame)
        return view

    return picture


def _bounced(position: float, room: int) -> int:
    inside = abs(position) % (2 * room)
    return round(min(inside, 2 * room - inside))


def _ground(draw: np.random.Generator, height: int, width: int) -> Picture:
    """Coloured noise of several sizes: large patches, smaller ones, and grain."""
    total = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((3, 1.0), (9, 0.5), (40, 0.25)):
        coarse = draw.normal(size=(cells + 1, 2 * cells + 1, 3)).astype(np.float32)
        rows = np.linspace(0, cells - 0.01, height)
        columns = np.linspace(0, 2 * cells - 0.01, width)
        r, c = rows.astype(int), columns.astype(int)
        fr = (rows - r)[:, None, None].astype(np.float32)
        fc = (columns - c)[None, :, None].astype(np.float32)
        top = coarse[r][:, c] * (1 - fc) + coarse[r][:, c + 1] * fc
        bottom = coarse[r + 1][:, c] * (1 - fc) + coarse[r + 1][:, c + 1] * fc
        total += weight * (top * (1 - fr) + bottom * fr)
    light, spread = draw.uniform(60, 170, 3), draw.uniform(20, 45)
    grain = draw.normal(0, 3, (height, width, 1))
    return np.clip(light + spread * total + grain, 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Thing:
    """A rectangle that goes its way and bounces off the picture's edges."""

    colour: NDArray[np.uint8]
    size: tuple[int, int]
    start: tuple[float, float]
    step: tuple[float, float]

    @staticmethod
    def drawn(draw: np.random.Generator, height: int, width: int) -> _Thing:
        size = (int(height * draw.uniform(0.1, 0.35)), int(width * draw.uniform(0.05, 0.25)))
        start = (draw.uniform(0, height), draw.uniform(0, width))
        step = (height * draw.uniform(-0.01, 0.01), width * draw.uniform(-0.015, 0.015))
        return _Thing(draw.integers(0, 256, 3).astype(np.uint8), size, start, step)

    def paint(self, view: Picture, frame: int) -> None:
        y = _bounced(self.start[0] + frame * self.step[0], view.shape[0] - self.size[0])
        x = _bounced(self.start[1] + frame * self.step[1], view.shape[1] - self.size[1])
        view[y : y + self.size[0], x : x + self.size[1]] = self.colour


JOINS = (
    *(Join("hard"),) * 8,
    *(Join("dissolve", length) for length in (4, 8, 12, 24, 48)),
    *(Join("fade", length) for length in (4, 8, 12, 24)),
    Join("fade", 12, white=True),
)
"""What a piece of footage goes through: eight hard cuts, ten transitions."""


def random_parts(seed: int, scene: Callable[[int, float], Scene], joins: Sequence[Join] = JOINS) -> list[Part]:
    """Parts in random order: one a join and one more; every fourth has a flash, every fourth a fast pan.

    Args:
        scene: makes the k-th scene, given how fast its camera goes.
    """
    draw = np.random.default_rng(seed)
    order = [joins[k] for k in draw.permutation(len(joins))] + [Join("hard")]
    parts = []
    for k, join in enumerate(order):
        pace = 0.08 if k % 4 == 2 else float(draw.uniform(0, 0.006))
        frames = int(draw.integers(24, 97))
        flash = int(draw.integers(8, frames - 8)) if k % 4 == 0 else None
        parts.append(Part(scene(k, pace), frames, join, flash))
    return parts


def write_video(
    path: Path, frames: Iterable[Picture], fps: Fraction = Fraction(24), gop: int = 96, crf: int = 18
) -> None:
    """Encode frames as H.264 with a keyframe at least every `gop` frames, and at scene changes as x264 finds them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "veryfast"})
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        for index, frame in enumerate(frames):
            if index == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())

"""Camera moves over a still with depth: pans, zooms, turns, dollies past layers, and things that cross the picture.

Everything that moves is an exact warp of the picture, so a clip teaches that things keep their look while they move. A
move is drawn from a generator alone: a recipe that wants more variety asks for more clips, none of which repeats.

    source(p, t) = centre + R(turn t) (p - middle) side(t) + travel t + parallax(p) t,        0 <= t <= 1

Parallax is the travel of the camera times a smooth inverse depth: a ground plane, nearer at the bottom, and a few round
shapes that stand before it. Travel is drawn log-uniformly, so that measured motion buckets cover the scale.

Legend: T frames, H, W pixels of the clip; lengths in shares of the window's width unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from model.errors import MissingExtra
from model.media.video import Frames

Field = np.ndarray[Any, np.dtype[np.float32]]

KINDS = ("pan", "zoom in", "zoom out", "turn", "dolly", "crossing")
SLOW_PAN = "slow pan"
"""A kind of its own, always to the right: which way a clip moves then follows from nothing that has to be guessed."""
TRAVEL = (0.012, 0.4)
"""Least and most travel over a whole clip."""
SLOW_TRAVEL = (0.8 / 224, 26 / 224)
"""The same of a slow pan: of windows 224 pixels wide, 0.8 to 26 pixels, which are motion buckets 12 to 170 at 6 fps."""
_WINDOW = (0.55, 0.95)
"""Share of the largest window that fits into the picture."""
_SLOW_WINDOW = (0.7, 1.0)
"""The same of a slow pan: nearly the whole picture, as a user's still is fitted."""
_MOST_ZOOM = 0.5
_MOST_TURN = 0.5  # radians
_THING = (0.15, 0.35)  # radius of a thing that crosses, in heights


@dataclass(frozen=True, slots=True)
class Path:
    """One drawn camera move.

    Args:
        kind: one of KINDS, or SLOW_PAN.
        travel: of the camera, (x, y).
        zoom: natural logarithm of how much larger things end.
        turn: radians that the picture turns by.
        near: how much further the nearest point travels than the farthest; 0 for a flat picture.
    """

    kind: str
    travel: tuple[float, float]
    zoom: float
    turn: float
    near: float


class _Draw:
    """Numbers from a torch generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def index(self, count: int) -> int:
        return int(torch.randint(0, count, (), generator=self._generator))


def draw_path(kind: str, generator: torch.Generator) -> Path:
    """A move of one kind, its size drawn log-uniformly."""
    draw = _Draw(generator)
    if kind == SLOW_PAN:
        return Path(kind, (draw.log_uniform(*SLOW_TRAVEL), 0.0), 0.0, 0.0, 0.0)
    size = draw.log_uniform(*TRAVEL)
    angle = draw.uniform(0, 2 * math.pi)
    step = (math.cos(angle) * size, 0.5 * math.sin(angle) * size)
    # A zoom by z or a turn by a moves a pixel by about a quarter of the width times z or a.
    zoom, turn = min(_MOST_ZOOM, 4 * size), min(_MOST_TURN, 4 * size)
    sign = 1.0 if draw.uniform(0, 1) < 0.5 else -1.0
    drift = (0.2 * step[0], 0.2 * step[1])
    match kind:
        case "zoom in":
            return Path(kind, drift, zoom, 0.0, 0.0)
        case "zoom out":
            return Path(kind, drift, -zoom, 0.0, 0.0)
        case "turn":
            return Path(kind, drift, 0.0, sign * turn, 0.0)
        case "dolly":
            return Path(kind, step, sign * draw.uniform(0, 0.5) * zoom, 0.0, draw.uniform(0.5, 1.5))
        case "crossing":
            return Path(kind, drift, 0.0, 0.0, 0.0)
        case _:
            return Path("pan", step, 0.0, 0.0, 0.0)


def render_path(
    picture: Frames,
    other: Frames,
    frames: int,
    height: int,
    width: int,
    generator: torch.Generator,
    kinds: Sequence[str] | None = None,
) -> Frames:
    """A clip [T, H, W, 3] of a drawn move over a picture [*, *, 3].

    Args:
        other: where a thing that crosses has its looks from.
        kinds: of moves to draw from; None: KINDS.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise MissingExtra("rendering camera moves", "train") from None
    draw = _Draw(generator)
    kinds = KINDS if kinds is None else kinds
    path = draw_path(kinds[draw.index(len(kinds))], generator)
    side = min(picture.shape[1] / width, picture.shape[0] / height) * draw.uniform(
        *(_SLOW_WINDOW if path.kind == SLOW_PAN else _WINDOW)
    )
    window = (width * side, height * side)
    room = ((picture.shape[1] - window[0]) / 2, (picture.shape[0] - window[1]) / 2)
    centre = [picture.shape[1 - axis] / 2 + room[axis] * draw.uniform(-0.8, 0.8) for axis in (0, 1)]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    depth = _inverse_depth(height, width, draw) * path.near if path.near else np.zeros((height, width), np.float32)
    shrunk = cv2.GaussianBlur(picture, (0, 0), 0.4 * side) if side > 1.25 else picture  # or detail would alias
    crossing = _Crossing.drawn(other, height, width, draw) if path.kind == "crossing" else None
    out = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        share = t / max(1, frames - 1)
        scale, angle = side * math.exp(-path.zoom * share), path.turn * share
        along = (1 + depth) * width * side * share
        map_x = centre[0] + scale * (math.cos(angle) * x - math.sin(angle) * y) + path.travel[0] * along
        map_y = centre[1] + scale * (math.sin(angle) * x + math.cos(angle) * y) + path.travel[1] * along
        cv2.remap(
            shrunk, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_CUBIC, out[t], cv2.BORDER_REFLECT_101
        )
        if crossing is not None:
            crossing.put(out[t], share)
    return out


def _inverse_depth(height: int, width: int, draw: _Draw) -> Field:
    """Smooth, 0 (far) to 1 (near): [H, W]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ground = (y / (height - 1) - draw.uniform(0.2, 0.6)).clip(0, None) if draw.uniform(0, 1) < 0.7 else 0 * y
    for _ in range(draw.index(3)):
        radius = draw.uniform(0.15, 0.4) * height
        at = (draw.uniform(0.1, 0.9) * width, draw.uniform(0.2, 0.9) * height)
        away = np.hypot(x - at[0], y - at[1]) / radius
        ground = np.maximum(ground, draw.uniform(0.4, 1.0) / (1 + np.exp(8 * (away - 1))))
    largest = float(ground.max())
    depth: Field = (ground / largest if largest > 0 else ground).astype(np.float32)
    return depth


@dataclass(frozen=True, slots=True)
class _Crossing:
    """A round piece of another picture that moves through the clip."""

    piece: Frames
    alpha: Field
    start: tuple[float, float]
    step: tuple[float, float]

    @classmethod
    def drawn(cls, other: Frames, height: int, width: int, draw: _Draw) -> _Crossing:
        import cv2

        radius = draw.uniform(*_THING) * height
        size = 2 * math.ceil(radius) + 1
        side = min(other.shape[0], other.shape[1])
        top, left = draw.index(other.shape[0] - side + 1), draw.index(other.shape[1] - side + 1)
        square = np.ascontiguousarray(other[top : top + side, left : left + side])
        piece = np.asarray(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
        v, u = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
        # An uneven outline: the radius varies with the angle.
        angle, phase = np.arctan2(v, u), draw.uniform(0, 2 * math.pi)
        lobes = 1 + draw.index(4)
        edge = radius * (0.85 + 0.15 * np.sin(lobes * angle + phase))
        alpha = (edge - np.hypot(u, v) + 0.5).clip(0, 1).astype(np.float32)
        travel, towards = draw.log_uniform(*TRAVEL) * 2, draw.uniform(0, 2 * math.pi)
        step = (math.cos(towards) * travel * width, 0.4 * math.sin(towards) * travel * width)
        start = (draw.uniform(0.2, 0.8) * width - step[0] / 2, draw.uniform(0.3, 0.8) * height - step[1] / 2)
        return cls(piece, alpha, start, step)

    def put(self, frame: Frames, share: float) -> None:
        """Draw it into a frame [H, W, 3], in place, to a fraction of a pixel."""
        import cv2

        half = (self.alpha.shape[0] - 1) / 2
        at = (self.start[0] + self.step[0] * share - half, self.start[1] + self.step[1] * share - half)
        matrix = np.array([[1, 0, at[0]], [0, 1, at[1]]], np.float32)
        shown = (frame.shape[1], frame.shape[0])
        alpha = cv2.warpAffine(self.alpha, matrix, shown)[..., None]
        piece = cv2.warpAffine(self.piece, matrix, shown, borderMode=cv2.BORDER_REPLICATE)
        frame[:] = np.rint(frame * (1 - alpha) + piece * alpha).astype(np.uint8)

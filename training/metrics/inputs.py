"""The held-out clips and photographs a checkpoint is measured on, chosen by rule: no draw, no choice by hand.

A shot gives clips at several frame rates, as training does: every second, third or fourth frame of the film. Within a
shot and a frame rate, clips start at even distances. The order goes round the shots, so that the first N clips cover
all of them as evenly as can be, whatever N. An `EvalSample` is what an evaluation's page shows of one input.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import av
import numpy as np

from model.errors import DataError
from model.media.video import Frames
from training.data.frames import read_photo, read_shot
from training.data.motion_bucket import MotionMap, measure_flow
from training.data.starter import Item, load_items

STRIDES = (2, 3, 4)
STARTS = 4
"""Clips at most of one shot at one frame rate."""


@dataclass(frozen=True, slots=True)
class RealClip:
    """A held-out clip, as the model would be asked to make it from its first frame.

    Args:
        name: shot, stride and first frame: `shot-007/2/0`.
        shot: clips of one shot are not independent; intervals are taken over shots.
        frames: [T, H, W, 3] uint8.
        fps: of the clip, the film's over the stride.
        flow: measured, in short sides a second; its bucket conditions the generated clip.
    """

    name: str
    shot: str
    frames: Frames
    fps: float
    flow: float
    bucket: int


def _places(item: Item, num_frames: int) -> Iterator[tuple[int, int]]:
    """(stride, start) of a shot's clips: strides vary first, then starts, from the shot's beginning on."""
    for start in range(STARTS):
        for stride in STRIDES:
            room = item.num_frames - ((num_frames - 1) * stride + 1)
            if room >= 0 and (start == 0 or room >= start * num_frames):
                yield stride, start * room // max(1, STARTS - 1)


def choose(items: list[Item], num_frames: int, limit: int) -> list[tuple[Item, int, int]]:
    """(shot, stride, start) of the first `limit` clips, in round-robin order over the held-out shots.

    Raises:
        DataError: no held-out shot is long enough.
    """
    shots = [item for item in items if item.kind == "shot" and item.split == "heldout"]
    rounds = zip_longest(*([(shot, *place) for place in _places(shot, num_frames)] for shot in shots))
    selected = [one for turn in rounds for one in turn if one is not None][:limit]
    if not selected:
        raise DataError(f"the dataset holds no held-out shot long enough for {num_frames} frames")
    return selected


def real_clips(folder: Path, num_frames: int, height: int, width: int, limit: int, motion: MotionMap) -> list[RealClip]:
    """The held-out clips of a dataset folder at T x H x W, in round-robin order over shots.

    Raises:
        DataError: not a dataset, or one without held-out shots long enough.
    """
    clips: list[RealClip] = []
    shots: dict[str, Frames] = {}
    for item, stride, start in choose(load_items(folder), num_frames, limit):
        if item.id not in shots:
            shots[item.id] = read_shot(folder / item.file, height, width)
        frames = shots[item.id][start : start + (num_frames - 1) * stride + 1 : stride]
        fps = item.fps / stride
        flow = measure_flow(frames, fps)
        name = f"{item.id}/{stride}/{start}"
        clips.append(RealClip(name, item.id, frames.copy(), fps, flow, motion.bucket(flow)))
    return clips


@dataclass(frozen=True, slots=True)
class Still:
    """A held-out picture, [H, W, 3]: `kind` is `shot` (its first frame) or `photo`."""

    kind: str
    picture: Frames


def stills(folder: Path, height: int, width: int) -> dict[str, Still]:
    """One picture of each held-out source at H x W, shots and photographs by turns, by name.

    Raises:
        DataError: not a dataset.
    """
    held_out = [item for item in load_items(folder) if item.split == "heldout"]
    kinds = ([item for item in held_out if item.kind == kind] for kind in ("shot", "photo"))
    turns = [item for pair in zip_longest(*kinds) for item in pair if item is not None]
    read = {"shot": _first_frame, "photo": lambda *place: read_photo(*place)[0]}
    return {item.id: Still(item.kind, read[item.kind](folder / item.file, height, width)) for item in turns}


def _first_frame(path: Path, height: int, width: int) -> Frames:
    with av.open(str(path)) as container:
        frame = next(container.decode(container.streams.video[0]))
        return np.asarray(frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray())


@dataclass(frozen=True, slots=True)
class EvalSample:
    """One input's clips.

    Args:
        name: the held-out clip, or the prompt.
        real: [T, H, W, 3], what was to be met; None where nothing is (a prompt has no one right clip).
        sides: [T, H, W, 3] each, by the name of who made it.
    """

    name: str
    real: Frames | None
    sides: Mapping[str, Frames]

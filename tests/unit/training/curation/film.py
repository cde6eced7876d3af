"""Small videos for the tests of curation, written once a process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.curation.frames import decode
from training.curation.records import Cut
from training.curation.synthetic_video import Join, Part, Truth, random_scene, render, write_video

HEIGHT, WIDTH, FPS = 72, 128, 24
FEW = (Join("hard"), Join("dissolve", 12), Join("hard"), Join("fade", 8))


def parts_of(joins: Sequence[Join], frames: int = 40, seed: int = 5, pace: float = 0.002) -> list[Part]:
    scenes = [random_scene(100 * seed + k, HEIGHT, WIDTH, pace) for k in range(len(joins) + 1)]
    return [Part(scene, frames, join) for scene, join in zip(scenes, [*joins, Join("hard")], strict=True)]


def small_film(path: Path, joins: Sequence[Join] = FEW, frames: int = 40, gop: int = 30, seed: int = 5) -> list[Truth]:
    """Write a film of as many scenes as joins and one more; returns where its cuts are."""
    pictures, truths, _ = render(parts_of(joins, frames, seed))
    write_video(path, pictures, gop=gop)
    return truths


def true_cuts(truths: Sequence[Truth], source: str = "s") -> list[Cut]:
    """The truth in the form of what a detector finds."""
    return [
        Cut(source, (t.start + t.end) / 2 / FPS, t.start / FPS, t.end / FPS, t.kind, 1.0, "truth", "full")
        for t in truths
    ]


def pictures(path: Path) -> list[np.ndarray]:
    return [frame.rgb() for frame, _ in decode(path)]

"""Clips of a virtual camera whose motion is known by name: pans, zooms and none, over film frames and photographs.

A pan to the left turns the camera to the left, so what is in the picture goes to the right. These clips teach
text-to-video what the words mean; a motion's speed is drawn, and its motion bucket follows from its measured flow.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from model.errors import DataError
from model.media.video import Frames
from training.data.display import displayed_frames
from training.data.frames import Clip
from training.data.seeding import generator
from training.data.shards import INSIDE, open_member
from training.data.starter import Item

MOTIONS = ("pan left", "pan right", "zoom in", "zoom out", "still")
FPS_CHOICES = (6, 8, 12)
PAN_TRAVEL = (0.3, 1.0)
"""Least and greatest way of a pan, in heights of what the camera sees."""
_KEY = 78


def render_camera(
    picture: Image.Image,
    motion: str,
    frames: int,
    height: int,
    width: int,
    draw: torch.Generator,
    pan_travel: tuple[float, float] = PAN_TRAVEL,
) -> Frames:
    """A clip of one motion over a picture: [T, H, W, 3]; its speed and place are drawn."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    aspect = width / height
    largest = min(picture.width / aspect, picture.height)
    size = largest * uniform(0.5, 0.75)
    sizes = (size, size)
    if motion.startswith("zoom"):
        near, far = largest * uniform(0.45, 0.6), largest * uniform(0.8, 1.0)
        sizes = (far, near) if motion == "zoom in" else (near, far)
    travel = 0.0
    if motion.startswith("pan"):
        room = picture.width - sizes[0] * aspect
        travel = min(room, size * uniform(*pan_travel)) * (-1 if motion == "pan left" else 1)
    half = np.array([max(sizes) * aspect, max(sizes)]) / 2
    room = np.array(picture.size) - 2 * half - np.array([abs(travel), 0.0])
    start = half + np.array([max(0.0, -travel), 0.0]) + np.maximum(room, 0) * [uniform(0, 1), uniform(0, 1)]
    out = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        share = t / (frames - 1)
        side = sizes[0] * (sizes[1] / sizes[0]) ** share
        x, y = start[0] + travel * share, start[1]
        box = (x - side * aspect / 2, y - side / 2, x + side * aspect / 2, y + side / 2)
        box = (max(0.0, box[0]), max(0.0, box[1]), min(picture.width, box[2]), min(picture.height, box[3]))
        out[t] = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))
    return out


def camera_clips(
    folder: Path,
    items: list[Item],
    cache: Path,
    height: int,
    width: int,
    *,
    count: int,
    frames: int,
    seed: int,
    motions: tuple[str, ...] = MOTIONS,
    pan_travel: tuple[float, float] = PAN_TRAVEL,
) -> list[tuple[Clip, str]]:
    """`count` clips with their motions' names, rendered into the cache; items and motions take turns.

    Args:
        items: of one split; a shot gives one of its frames, drawn.
        motions: which of `MOTIONS`.
        pan_travel: as `PAN_TRAVEL`.

    Raises:
        DataError: a motion that no clip can have.
    """
    if not motions or not set(motions) <= set(MOTIONS):
        raise DataError(f"camera clips have some of the motions {', '.join(MOTIONS)}; not {', '.join(motions)!r}")
    these = "camera" if motions == MOTIONS else "camera-" + "-".join(one.replace(" ", "_") for one in motions)
    if pan_travel != PAN_TRAVEL:
        these += "-pan_{}_{}".format(*pan_travel)
    rendered: list[tuple[Clip, str]] = []
    for index in range(count if items else 0):
        motion = motions[index % len(motions)]
        draw = generator(seed, index, _KEY)
        item = items[int(torch.randint(0, len(items), (), generator=draw))]
        fps = float(FPS_CHOICES[int(torch.randint(0, len(FPS_CHOICES), (), generator=draw))])
        name = f"{these}-{seed}-{index:04d}-{item.split}"
        cached = cache / f"{name}-{frames}x{height}x{width}.npy"
        if not cached.exists():
            array = render_camera(_picture(folder, item, draw), motion, frames, height, width, draw, pan_travel)
            partial = cached.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.save(stream, array)
            partial.replace(cached)
        shown = dataclasses.replace(item, id=f"{name}-{frames}", kind="move", num_frames=frames, fps=fps)
        rendered.append((Clip(shown, np.load(cached, mmap_mode="r")), motion))
    return rendered


def _picture(folder: Path, item: Item, draw: torch.Generator) -> Image.Image:
    if item.kind == "photo":
        with Image.open(folder / item.file) as opened:
            return opened.convert("RGB")
    frame_number = int(torch.randint(0, item.num_frames, (), generator=draw))
    source = open_member(folder, item.file) if INSIDE in item.file else str(folder / item.file)
    with av.open(source, "r") as container:
        for index, shown in enumerate(displayed_frames(container)):
            last = shown
            if index == frame_number:
                break
    return Image.fromarray(last.rgb())

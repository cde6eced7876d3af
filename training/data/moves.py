"""Camera moves over a still: pans and zooms rendered from a photograph, so that stills teach motion too.

A move is a crop window whose centre and size run smoothly from a start to an end; speeds are drawn log-uniformly, so
that the motion buckets of the result cover the scale. These clips train the denoiser beside real film; they are never
counted as film, and never evaluated on as if they were.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from model.media.video import Frames
from training.data.camera_paths import SLOW_PAN, render_path
from training.data.frames import Clip
from training.data.seeding import generator
from training.data.starter import Item

FPS_CHOICES = (6, 8, 12)


def render_move(picture: Image.Image, frames: int, height: int, width: int, draw: torch.Generator) -> Frames:
    """One smooth random move over a picture: [T, H, W, 3]."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    aspect = width / height
    largest = min(picture.width / aspect, picture.height)
    # Total travel, in window heights, and total zoom, as a factor: from hardly any to a lot.
    travel = math.exp(uniform(math.log(0.03), math.log(1.2)))
    zoom = math.exp(uniform(-0.6, 0.6) * travel) if uniform(0, 1) < 0.5 else 1.0
    side = largest * uniform(0.4, 0.7)
    angle = uniform(0, 2 * math.pi)
    step = np.array([math.cos(angle), 0.5 * math.sin(angle)]) * travel * side * (uniform(0, 1) < 0.85)
    ends = np.array([side, side * zoom]).clip(16, largest)
    half = np.array([ends.max() * aspect, ends.max()]) / 2
    room = np.maximum(np.array(picture.size) - 2 * half, 0)
    step = np.clip(step, -room, room)
    start = half + np.maximum(0, -step) + (room - np.abs(step)) * np.array([uniform(0, 1), uniform(0, 1)])
    out = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        share = t / (frames - 1)
        size = ends[0] * (ends[1] / ends[0]) ** share
        x, y = start + step * share
        box = (x - size * aspect / 2, y - size / 2, x + size * aspect / 2, y + size / 2)
        box = (max(0.0, box[0]), max(0.0, box[1]), min(picture.width, box[2]), min(picture.height, box[3]))
        out[t] = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))
    return out


def camera_moves(
    folder: Path,
    photos: list[Item],
    cache: Path,
    height: int,
    width: int,
    *,
    count: int,
    frames: int,
    seed: int,
    renderer: str = "window",
) -> list[Clip]:
    """`count` moves over the photographs in turn, rendered into the cache.

    Args:
        renderer: `window`, pans and zooms of a crop window; `paths`, those of training.data.camera_paths; `slow-pan`,
            its slow pan alone.
    """
    clips: list[Clip] = []
    prefix = "move" if renderer == "window" else renderer
    for index in range(count if photos else 0):
        photo = photos[index % len(photos)]
        name = f"{prefix}-{seed}-{index:03d}"
        draw = generator(seed, index, 77)
        fps = float(FPS_CHOICES[int(torch.randint(0, len(FPS_CHOICES), (), generator=draw))])
        cached = cache / f"{name}-{height}x{width}.npy"
        if not cached.exists():
            picture = _opened(folder / photo.file)
            if renderer == "window":
                array = render_move(picture, frames, height, width, draw)
            else:
                other = _opened(folder / photos[int(torch.randint(0, len(photos), (), generator=draw))].file)
                kinds = (SLOW_PAN,) if renderer == "slow-pan" else None
                array = render_path(np.asarray(picture), np.asarray(other), frames, height, width, draw, kinds)
            partial = cached.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.save(stream, array)
            partial.replace(cached)
        item = dataclasses.replace(photo, id=name, kind="move", num_frames=frames, fps=fps)
        clips.append(Clip(item, np.load(cached, mmap_mode="r")))
    return clips


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")

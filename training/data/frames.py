"""Frames at training size, decoded once: one uint8 array a shot, memory-mapped.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from PIL import Image

from model.errors import DataError
from training.data.shards import INSIDE, open_member
from training.data.starter import Item

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

MOST_UNREADABLE = 0.1
"""Share of a dataset's items that may be unreadable before training stops."""


def read_shot(source: Path | io.BytesIO, height: int, width: int) -> Pixels:
    """All frames of a video file, scaled to cover height x width and centre-cropped: [T, H, W, 3]."""
    frames: list[Pixels] = []
    with av.open(source if isinstance(source, io.BytesIO) else str(source), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            turns = round(frame.rotation / 90) % 4
            shown = (frame.height, frame.width) if turns % 2 == 0 else (frame.width, frame.height)
            scale = max(height / shown[0], width / shown[1])
            tall, wide = (max(wanted, round(side * scale)) for wanted, side in zip((height, width), shown, strict=True))
            stored = {"height": tall, "width": wide} if turns % 2 == 0 else {"height": wide, "width": tall}
            small = np.rot90(frame.reformat(**stored, format="rgb24", interpolation="AREA").to_ndarray(), turns)
            top, left = (tall - height) // 2, (wide - width) // 2
            frames.append(cast(Pixels, small[top : top + height, left : left + width]))
    return np.stack(frames)


def read_photo(path: Path, height: int, width: int) -> Pixels:
    """A photograph scaled to cover height x width and centre-cropped: [1, H, W, 3]."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    scale = max(height / picture.height, width / picture.width)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    array = np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.ascontiguousarray(array[None, top : top + height, left : left + width])


@dataclass(frozen=True, slots=True)
class Clip:
    """A dataset item with its frames: [T, H, W, 3] uint8, memory-mapped."""

    item: Item
    frames: Pixels


def load_clips(
    folder: Path,
    items: list[Item],
    cache: Path,
    height: int,
    width: int,
    report: Callable[[str, int, int], None] = lambda *_: None,
    most_unreadable: float = MOST_UNREADABLE,
) -> list[Clip]:
    """The items' frames at height x width, from the cache or decoded into it.

    An item that cannot be read is left out, and reported by name.

    Args:
        most_unreadable: share of the items that may be unreadable.

    Raises:
        DataError: more than that are; the message counts and names them.
    """
    cache.mkdir(parents=True, exist_ok=True)
    clips: list[Clip] = []
    unreadable: list[str] = []
    for index, item in enumerate(items):
        kept = cache / f"{item.id}-{height}x{width}.npy"
        if not kept.exists():
            try:
                frames = _read(folder, item, height, width)
            except (OSError, ValueError, DataError) as error:  # PyAV's errors are ValueErrors or OSErrors
                unreadable.append(item.id)
                report(f"left out {item.id}, which cannot be read ({error})", len(unreadable), len(items))
                continue
            partial = kept.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.save(stream, frames)
            partial.replace(kept)
        clips.append(Clip(item, np.load(kept, mmap_mode="r")))
        report("decoding frames", index + 1, len(items))
    if len(unreadable) > most_unreadable * len(items):
        raise DataError(
            f"{len(unreadable)} of {len(items)} items cannot be read, more than {most_unreadable:.0%}: "
            f"{', '.join(unreadable[:20])}; prepare the dataset again"
        )
    return clips


def _read(folder: Path, item: Item, height: int, width: int) -> Pixels:
    if item.kind != "shot":
        return read_photo(folder / item.file, height, width)
    source = open_member(folder, item.file) if INSIDE in item.file else folder / item.file
    return read_shot(source, height, width)


def thinned(clip: Clip, keep_every: int) -> Clip:
    """The clip with every `keep_every`-th frame, at the frame rate that leaves; its id says so."""
    item, frames = clip.item, clip.frames[::keep_every]
    name = f"{item.id}-by{keep_every}"
    thin = dataclasses.replace(item, id=name, fps=item.fps / keep_every, num_frames=len(frames))
    return Clip(thin, frames)

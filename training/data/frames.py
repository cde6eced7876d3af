"""Frames at training size, decoded once: one uint8 array a shot, memory-mapped.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.errors import DataError
from model.media.video import Frames
from training.config import ProgressCallback
from training.data.display import displayed_frames, first_display
from training.data.excluded_clips import ExcludedClips
from training.data.shards import INSIDE, open_member
from training.data.starter import Item

READING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, av.FFmpegError, Image.DecompressionBombError)
"""What broken files make PyAV, Pillow and numpy raise; a DataError is a ValueError."""


def read_shot(source: Path | io.BytesIO, height: int, width: int) -> Frames:
    """All frames of a video file as displayed, scaled to cover height x width and centre-cropped: [T, H, W, 3]."""
    frames: list[Frames] = []
    with av.open(source if isinstance(source, io.BytesIO) else str(source), "r") as container:
        for shown in displayed_frames(container):
            own = shown.size
            scale = max(height / own[0], width / own[1])
            tall, wide = (max(least, round(side * scale)) for least, side in zip((height, width), own, strict=True))
            top, left = (tall - height) // 2, (wide - width) // 2
            frames.append(shown.rgb(tall, wide)[top : top + height, left : left + width])
    return np.stack(frames)


def read_photo(path: Path, height: int, width: int) -> Frames:
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
    frames: Frames


def load_clips(
    folder: Path,
    items: list[Item],
    cache: Path,
    height: int,
    width: int,
    report: ProgressCallback = lambda *_: None,
    excluded: ExcludedClips | None = None,
) -> list[Clip]:
    """The items' frames at height x width, as `load_sized` gives them."""
    return load_sized(folder, items, cache, lambda _: (height, width), report, excluded)


def load_sized(
    folder: Path,
    items: list[Item],
    cache: Path,
    size_of: Callable[[Item], tuple[int, int]],
    report: ProgressCallback = lambda *_: None,
    excluded: ExcludedClips | None = None,
) -> list[Clip]:
    """The items' frames, each at its own (height, width), from the cache or decoded into it.

    An item that cannot be read is passed over, counted and named.

    Args:
        size_of: an item's size; may raise what broken files make one raise.
        excluded: records them; one that allows a tenth is made if it is None.

    Raises:
        DataError: more than `excluded` allows are; the message counts and names them.
    """
    cache.mkdir(parents=True, exist_ok=True)
    excluded = excluded or ExcludedClips(report)
    clips: list[Clip] = []
    for index, item in enumerate(items):
        try:
            height, width = size_of(item)
            cached = cache / f"{item.id}-{height}x{width}.npy"
            frames = None if cached.exists() else _read(folder, item, height, width)
        except READING_ERRORS as error:
            excluded.cannot_read(item.id, error)
            continue
        if frames is not None:
            partial = cached.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.save(stream, frames)
            partial.replace(cached)
        clips.append(Clip(item, np.load(cached, mmap_mode="r")))
        report("decoding frames", index + 1, len(items))
    excluded.refuse_too_many(len(items))
    return clips


def _read(folder: Path, item: Item, height: int, width: int) -> Frames:
    if item.kind != "shot":
        return read_photo(folder / item.file, height, width)
    frames = read_shot(_source(folder, item), height, width)
    if len(frames) < item.num_frames:
        raise DataError(f"only {len(frames)} of its {item.num_frames} frames are there")
    return frames


def _source(folder: Path, item: Item) -> Path | io.BytesIO:
    return open_member(folder, item.file) if INSIDE in item.file else folder / item.file


def shown_size(folder: Path, item: Item) -> tuple[int, int]:
    """(height, width) of an item as it is shown, in pixels: of its first picture.

    Raises:
        DataError: it has no pictures. And what broken files make one raise: READING_ERRORS.
    """
    if item.kind != "shot":
        with Image.open(folder / item.file) as opened:
            return opened.height, opened.width
    return first_display(_source(folder, item)).size


def readable_photos(folder: Path, items: list[Item], excluded: ExcludedClips) -> list[Item]:
    """The photographs among the items that decode to their end; the others are counted and named."""
    readable: list[Item] = []
    for item in items:
        if item.kind != "photo":
            continue
        try:
            with Image.open(folder / item.file) as opened:
                opened.load()
        except READING_ERRORS as error:
            excluded.cannot_read(item.id, error)
            continue
        readable.append(item)
    excluded.refuse_too_many(len(items))
    return readable


def subsample(clip: Clip, keep_every: int) -> Clip:
    """The clip with every `keep_every`-th frame, at the frame rate that leaves; its id says so."""
    item, frames = clip.item, clip.frames[::keep_every]
    name = f"{item.id}-by{keep_every}"
    thin = dataclasses.replace(item, id=name, fps=item.fps / keep_every, num_frames=len(frames))
    return Clip(thin, frames)


def random_crops(clips: list[Clip], count: int, frames: int, side: int, draw: torch.Generator) -> Tensor:
    """`count` square crops of `frames` consecutive frames, mirrored at random.

    Longer clips are drawn more often, as they show more; one too short is not drawn.

    Returns:
        [count * frames, 3, side, side] in [-1, 1].
    """
    lengths = torch.tensor([len(clip.frames) for clip in clips], dtype=torch.float64)
    weights = torch.where(lengths >= frames, lengths.clamp(min=24.0), 0.0)
    out: list[Tensor] = []
    for index in torch.multinomial(weights, count, replacement=True, generator=draw).tolist():
        array = clips[index].frames
        room = (array.shape[0] - frames, array.shape[1] - side, array.shape[2] - side)
        t, y, x = (int(torch.randint(0, size + 1, (), generator=draw)) for size in room)
        crop = torch.from_numpy(array[t : t + frames, y : y + side, x : x + side].copy())
        out.append(crop.flip(2) if torch.rand((), generator=draw) < 0.5 else crop)
    return torch.cat(out).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

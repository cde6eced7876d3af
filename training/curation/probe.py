"""The first stage: what a source file is, and whether clips can come of it; a broken file's record says why not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from model.errors import DataError
from training.curation.records import SourceRecord
from training.data.display import display_of, video_stream

UNEVEN = 0.25
"""Frames are of variable rate where one lasts more than this share longer or shorter than the average."""
LEAST_FRAMES = 2

Ticks = NDArray[np.int64]


def describe_fault(stage: str, error: Exception) -> str:
    """What went wrong with a source, for its line in the report: the message, the stage and the exception's name."""
    if isinstance(error, DataError):
        message = error.message
    elif isinstance(error, FFmpegError):
        message = f"not a video that can be read: {error.strerror}"
    else:
        message = f"cannot be read: {error}"
    return f"{message} ({stage}: {type(error).__name__})"


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """The video packets of a file in the order in which they are decoded.

    Args:
        pts: when each is shown, in ticks.
        pos, size: where its bytes lie in the file; pos is -1 where the container does not say.
        key: whether decoding can start there.
        time_base: seconds a tick.
        tail: ticks that the frame shown last lasts.
    """

    pts: Ticks
    pos: Ticks
    size: Ticks
    key: NDArray[np.bool_]
    time_base: Fraction
    tail: int

    @property
    def first(self) -> int:
        """The tick at which the first frame is shown."""
        return int(self.pts.min())

    @property
    def end(self) -> int:
        """The tick at which the last frame's time is over."""
        return int(self.pts.max()) + self.tail

    def seconds(self, tick: int) -> float:
        """A tick as seconds from the first frame."""
        return float((tick - self.first) * self.time_base)


def index_packets(path: Path) -> PacketIndex:
    """Read all packets of a file's first video stream, decoding none.

    Raises:
        DataError: it cannot be read, breaks off, or has no video with times.
    """
    try:
        with av.open(str(path)) as container:
            return _indexed(path, container)
    except FFmpegError as error:
        raise DataError(f"not a video that can be read: {error.strerror}") from error


def _indexed(path: Path, container: Any) -> PacketIndex:
    stream = video_stream(container)
    rows = [
        (packet.pts, -1 if packet.pos is None else packet.pos, packet.size, packet.is_keyframe, packet.duration or 0)
        for packet in container.demux(stream)
        if packet.size and packet.pts is not None and not packet.is_discard
    ]
    if len(rows) < LEAST_FRAMES:
        raise DataError(f"holds {len(rows)} video frames with a time; a clip needs at least {LEAST_FRAMES}")
    pts, pos, size, key, lasts = zip(*rows, strict=True)
    announced = stream.frames
    if announced and len(rows) < announced - 1 and pos[-1] + size[-1] >= path.stat().st_size - size[-1]:
        raise DataError(f"breaks off: {len(rows)} of {announced} frames are there")
    ticks = np.array(pts, np.int64)
    if len(np.unique(ticks)) < len(ticks):
        raise DataError("several frames have the same time")
    tail = lasts[int(ticks.argmax())] or int(np.median(np.diff(np.sort(ticks))))
    arrays = np.array(pos, np.int64), np.array(size, np.int64), np.array(key, np.bool_)
    return PacketIndex(ticks, *arrays, stream.time_base, int(tail))


def probe(path: Path) -> SourceRecord:
    """What the file is. Never raises for a broken file: the record's `error` says what is wrong with it."""
    try:
        sha256, size = _hashed(path)
    except OSError as error:
        return _broken(path, "", 0, f"cannot be read: {error.strerror}")
    try:
        if not size:
            raise DataError("is empty")
        index = index_packets(path)
        with av.open(str(path)) as container:
            return _described(path, sha256, size, container, index)
    except Exception as error:  # noqa: BLE001 -- whatever an odd file makes a library raise is that file's line
        return _broken(path, sha256, size, describe_fault("probe", error))


def _described(path: Path, sha256: str, size: int, container: Any, index: PacketIndex) -> SourceRecord:
    stream = video_stream(container)
    frame = next(iter(container.decode(stream)), None)
    if frame is None:
        raise DataError("no frame of it can be decoded")
    quarter = round(frame.rotation / 90) % 4
    display = display_of(stream, frame)
    display.check()
    height, width = display.size
    if not index.key.any():
        raise DataError("no frame of it is marked as one that decoding can start from")
    lasts = np.diff(np.append(np.sort(index.pts), index.end))
    duration = index.seconds(index.end)
    average = len(index.pts) / (lasts.sum() * index.time_base)
    return SourceRecord(
        path=str(path),
        sha256=sha256,
        bytes=size,
        container=container.format.name,
        codec=stream.codec_context.codec.name,
        pix_fmt=frame.format.name,
        fps=Fraction(average).limit_denominator(1001),
        duration_s=duration,
        frames=len(index.pts),
        width=width,
        height=height,
        rotation=-90 * quarter % 360,
        variable=bool(np.abs(lasts / lasts.mean() - 1).max() > UNEVEN),
        keyframes_s=tuple(sorted(index.seconds(int(tick)) for tick in index.pts[index.key])),
        error=None,
    )


def _hashed(path: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def _broken(path: Path, sha256: str, size: int, error: str) -> SourceRecord:
    return SourceRecord(str(path), sha256, size, "", "", "", Fraction(0), 0.0, 0, 0, 0, 0, False, (), error)

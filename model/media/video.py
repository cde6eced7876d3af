"""Frames to mp4, webm or gif and back, and the stills that stand for a clip. All in memory; imports no torch.

Legend: T frames, H, W pixels. Frames are [T, H, W, 3] uint8, RGB, full range.

Encoded videos are BT.709, limited range, 4:2:0, and tagged so. Containers' bytes differ between builds of the codecs:
to compare two videos, compare their decoded frames (`frames_sha256`).
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model.errors import InvalidRequest
from model.params import OutputFormat

Frames = NDArray[np.uint8]
"""[T, H, W, 3], RGB."""

_BT709 = 1
"""The code of BT.709 for primaries, transfer and matrix alike (ITU-T H.273, tables 2 to 4)."""
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_GIF_SHORTEST = 2
"""Centiseconds a gif frame lasts at least: viewers slow anything shorter down to 10."""
_SHEET_WIDTH = 1600
_SHEET_ASPECT = 16 / 10


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file says of itself.

    Args:
        codec: the decoder's name: `h264`, `vp9`, `gif`.
        pix_fmt: the pixel format, as FFmpeg names it.
        faststart: an mp4's index lies before its data, so it plays while it loads; None for other containers.
        frames: how many the file holds.
        fps: frames a second.
    """

    codec: str
    pix_fmt: str
    faststart: bool | None
    frames: int
    fps: float
    width: int
    height: int


def encode_video(frames: Frames, fps: int, format: OutputFormat) -> bytes:
    """A complete video file.

    mp4 is H.264, yuv420p, index first; 4:2:0 has no odd sizes there, so an odd side is lengthened by one repeated
    pixel. webm is VP9. gif has one palette for the clip and plays at most 50 frames a second.

    Raises:
        InvalidRequest: frames that are not [T, H, W, 3] uint8 with T, H, W >= 1, or fps below 1.
    """
    if format == "gif":
        _check(frames, fps)
        return _encode_gif(frames, fps)
    encoder = VideoEncoder(fps, format, len(frames))
    encoder.add(frames)
    return encoder.finish()


class VideoEncoder:
    """An mp4 or webm written frame by frame, so that encoding can begin before the last frame is there. One thread.

    Args:
        num_frames: that will be added in all; an mp4 keeps room for their index at its front.

    Raises:
        InvalidRequest: fps below 1.
    """

    def __init__(self, fps: int, format: Literal["mp4", "webm"], num_frames: int) -> None:
        if fps < 1:
            raise InvalidRequest(f"fps must be at least 1, not {fps}", param="fps")
        self._fps = fps
        self._format = format
        self._num_frames = num_frames
        self._count = 0
        self._out = io.BytesIO()
        self._container: Any = None
        self._stream: Any = None

    def add(self, frames: Frames) -> None:
        """Encode the next frames, all of one size.

        Raises:
            InvalidRequest: frames that are not [T, H, W, 3] uint8 with T, H, W >= 1.
        """
        _check(frames, self._fps)
        if self._format == "mp4":
            frames = _even(frames)
        if self._container is None:
            self._open(*frames.shape[1:3])
        for frame in frames:
            picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=_SCALING,
            )
            picture.pts, picture.time_base = self._count, Fraction(1, self._fps)
            self._container.mux(self._stream.encode(picture))
            self._count += 1

    def finish(self) -> bytes:
        """The complete file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._out.getvalue()

    def _open(self, height: int, width: int) -> None:
        if self._format == "mp4":
            # Pinned so that equal frames give equal files: one thread, and none of the encoder's looking ahead at once.
            codec, options = "libx264", {"crf": "16", "preset": "medium", "profile": "high", "threads": "1"}
            options["x264-params"] = "no-mbtree=1:weightp=0"
            # The index is written into room kept at the front; each frame takes some 20 bytes in it.
            muxing = {"moov_size": str(4096 + 64 * self._num_frames)}
        else:
            codec, muxing = "libvpx-vp9", {}
            options = {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1"}
        self._container = av.open(self._out, "w", format=self._format, options=muxing)
        self._stream = self._container.add_stream(codec, rate=self._fps, options=options)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = int(ColorRange.MPEG)


def _check(frames: Frames, fps: int) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise InvalidRequest(f"frames must be [T, H, W, 3] uint8, not {list(frames.shape)} {frames.dtype}")
    if fps < 1:
        raise InvalidRequest(f"fps must be at least 1, not {fps}", param="fps")


def _even(frames: Frames) -> Frames:
    _, height, width, _ = frames.shape
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _encode_gif(frames: Frames, fps: int) -> bytes:
    out, tick = io.BytesIO(), Fraction(1, 100)
    height, width = frames.shape[1:3]
    delay = max(Fraction(100, fps), Fraction(_GIF_SHORTEST))
    with av.open(out, "w", format="gif") as container:
        stream: Any = container.add_stream("gif", rate=Fraction(100) / delay)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, "pal8", tick
        for picture in _with_palette(frames, [round(index * delay) for index in range(len(frames))], tick):
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return out.getvalue()


def _with_palette(frames: Frames, times: list[int], tick: Fraction) -> Iterator[VideoFrame]:
    """The frames in one palette of 256 colours made for the whole clip, with error diffusion."""
    graph: Any = Graph()
    source = graph.add_buffer(width=frames.shape[2], height=frames.shape[1], format="rgb24", time_base=tick)
    split, sink = graph.add("split"), graph.add("buffersink")
    palette = graph.add("palettegen", "stats_mode=full:reserve_transparent=0")
    painted = graph.add("paletteuse", "dither=sierra2_4a:diff_mode=rectangle")
    source.link_to(split)
    split.link_to(painted, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(painted, 0, 1)
    painted.link_to(sink)
    graph.configure()
    for frame, time in zip(frames, times, strict=True):
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = time, tick
        source.push(picture)
    source.push(None)
    for _ in times:
        yield sink.pull()


def decode_video(data_or_path: bytes | Path | str) -> tuple[Frames, float]:
    """All frames of a video, [T, H, W, 3], and its frames a second.

    Raises:
        InvalidRequest: not a video that can be read.
    """
    with _opened(data_or_path) as container:
        stream: Any = container.streams.video[0]
        frames = [_to_rgb(frame) for frame in container.decode(stream)]
        if not frames:
            raise InvalidRequest("the video holds no frames", code="unreadable_video")
        return np.stack(frames), float(stream.average_rate or stream.base_rate or 0)


def _to_rgb(frame: VideoFrame) -> Frames:
    picture = frame.reformat(format="rgb24", interpolation=_SCALING, dst_color_range=ColorRange.JPEG)
    return np.asarray(picture.to_ndarray(), np.uint8)


def probe(data_or_path: bytes | Path | str) -> VideoInfo:
    """What a video file says of itself, without decoding its pictures.

    Raises:
        InvalidRequest: not a video that can be read.
    """
    with _opened(data_or_path) as container:
        stream: Any = container.streams.video[0]
        return VideoInfo(
            codec=stream.codec_context.codec.name,
            pix_fmt=stream.codec_context.pix_fmt or "",
            faststart=_index_first(data_or_path) if "mp4" in container.format.name else None,
            frames=sum(1 for packet in container.demux(stream) if packet.size),
            fps=float(stream.average_rate or stream.base_rate or 0),
            width=stream.width,
            height=stream.height,
        )


@contextmanager
def _opened(data_or_path: bytes | Path | str) -> Iterator[Any]:
    """Open for reading; whatever FFmpeg says of a broken file becomes an InvalidRequest."""
    source = io.BytesIO(data_or_path) if isinstance(data_or_path, bytes) else str(data_or_path)
    try:
        with av.open(source) as container:
            if not container.streams.video:
                raise InvalidRequest("the file holds no video", code="unreadable_video")
            yield container
    except FFmpegError as error:
        raise InvalidRequest(f"not a video that can be read: {error.strerror}", code="unreadable_video") from error


def _index_first(data_or_path: bytes | Path | str) -> bool:
    """Whether an mp4's `moov` box comes before its `mdat` (ISO/IEC 14496-12, 4.2: a size, a name, a body)."""
    with io.BytesIO(data_or_path) if isinstance(data_or_path, bytes) else Path(data_or_path).open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, name = int.from_bytes(head[:4], "big"), head[4:]
            if name in (b"moov", b"mdat"):
                return name == b"moov"
            if size == 1:
                size = int.from_bytes(file.read(8), "big") - 8
            if size < 8:
                break
            file.seek(size - 8, io.SEEK_CUR)
    return False


def frames_sha256(frames: Frames) -> str:
    """SHA-256, in hex, over a line with the shape (`14x128x224x3`) and then the RGB bytes.

    Two clips are the same video if this is the same.
    """
    digest = hashlib.sha256(("x".join(map(str, frames.shape)) + "\n").encode())
    digest.update(np.ascontiguousarray(frames).tobytes())
    return digest.hexdigest()


def thumbnail_jpeg(frame: NDArray[np.uint8], longest: int = 512) -> bytes:
    """A JPEG of one frame, [H, W, 3], scaled down so that no side is beyond `longest` pixels."""
    picture = Image.fromarray(frame)
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=88, optimize=True)
    return out.getvalue()


def contact_sheet_png(frames: Frames, *, columns: int | None = None, labels: Sequence[str] | None = None) -> bytes:
    """A PNG with every frame in an even grid, each with its label under it.

    Args:
        columns: frames a row; left out, whatever brings the sheet nearest to 16:10 with few empty places.
        labels: one a frame; left out, the frames are numbered from 1.

    Raises:
        InvalidRequest: columns below 1, or not one label a frame.
    """
    count, height, width, _ = frames.shape
    labels = [str(number) for number in range(1, count + 1)] if labels is None else labels
    columns = _columns(count, height, width) if columns is None else columns
    if columns < 1 or len(labels) != count:
        raise InvalidRequest(f"a sheet of {count} frames needs as many labels and at least 1 column")
    columns = min(columns, count)
    gap = 8
    scale = min(1.0, (_SHEET_WIDTH - gap * (columns + 1)) / (columns * width))
    cell = (max(1, round(width * scale)), max(1, round(height * scale)))
    size = max(10, min(18, cell[1] // 10))
    font: Any = ImageFont.load_default(size)
    step = (cell[0] + gap, cell[1] + round(1.5 * size) + gap)
    sheet = Image.new("RGB", (gap + columns * step[0], gap + -(-count // columns) * step[1]), "#16181c")
    draw: Any = ImageDraw.Draw(sheet)
    for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        left, top = gap + index % columns * step[0], gap + index // columns * step[1]
        sheet.paste(Image.fromarray(frame).resize(cell, Image.Resampling.LANCZOS), (left, top))
        draw.text((left + 1, top + cell[1] + round(0.8 * size)), label, font=font, fill="#a3a9b3", anchor="lm")
    out = io.BytesIO()
    sheet.save(out, "PNG", compress_level=3)  # five times as fast as the smallest file, and a tenth larger
    return out.getvalue()


def _columns(count: int, height: int, width: int) -> int:
    def cost(columns: int) -> float:
        rows = -(-count // columns)
        aspect = columns * width / (rows * height)
        return abs(math.log(aspect / _SHEET_ASPECT)) + 1.5 * (rows * columns - count) / count

    return min(range(1, count + 1), key=cost)

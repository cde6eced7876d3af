"""Decoded frames as a player displays them: turned, with square pixels, in sRGB of 8 bits.

What a file says beside its pixels is applied in one place, so that tables, captions and training frames agree:

- the display matrix (rotation by quarters, mirroring), which phones write;
- the sample aspect ratio of anamorphic video;
- the colour matrix and range (FFmpeg's swscale reads both off the frame); an untagged matrix is BT.709 from 1280 x 720
  on and BT.601 below, as players take it;
- primaries beyond BT.709 (BT.2020, P3) and the transfer functions of high dynamic range, PQ and HLG (ITU-R BT.2100):
  brought to sRGB with diffuse white at 203 cd/m2, brighter highlights clipped (model.media.color).

Legend: H, W pixels as displayed; h, w as stored.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, Interpolation

from model.errors import DataError
from model.media.color import PRIMARIES, VIDEO_TRANSFERS, video_to_srgb
from model.media.video import Frames

_UNSPECIFIED = 2
_FULL_RANGE = 2
_WIDE_PRIMARIES = frozenset({9, 11, 12})
_HDR_TRANSFERS = frozenset({16, 18})
_SAME_AS_BT709 = frozenset({_UNSPECIFIED, 1, 6, 14, 15})
"""Transfer functions that players show alike (ITU-T H.273, table 3)."""
_UNKNOWN_MATRICES = {
    8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "SMPTE ST 2085", 12: "chromaticity-derived",
    13: "chromaticity-derived with constant luminance", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-R", 17: "YCgCo-R",
}  # fmt: skip
"""Colour matrices that swscale does not convert (ITU-T H.273, table 4)."""
_UNKNOWN_TRANSFERS = {8: "linear light", 9: "a logarithmic curve", 10: "a logarithmic curve", 17: "SMPTE ST 428-1"}
_SWSCALE_WHITE = 0xFF00
"""What swscale makes of limited range's white in RGB of 16 bits."""
_ACCURATE = Interpolation.ACCURATE_RND
"""Without it, and `_ACCURATE_8` for 8 bits, swscale's colours are 1.2 of 255 levels too dark on average, up to 3."""
_ACCURATE_8 = _ACCURATE | Interpolation.FULL_CHR_H_INT
"""For RGB of 8 bits only: with full chroma interpolation swscale's RGB of 16 bits is wrong."""
_LARGEST_ASPECT = 10
"""A sample aspect ratio beyond this to one is damage, and counts as square."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """How stored rows and columns are turned for display: transposed first, then mirrored."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @staticmethod
    def of(matrix: Sequence[int] | None) -> Orientation:
        """The nearest of the eight to a display matrix (a b u, c d v, x y w: ISO/IEC 14496-12, 6.2.2)."""
        if matrix is None:
            return Orientation()
        a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return Orientation(False, a < 0, d < 0)
        return Orientation(True, c < 0, b < 0)

    def apply(self, picture: Frames) -> Frames:
        """A stored picture [h, w, 3] as [H, W, 3]."""
        if self.transpose:
            picture = picture.transpose(1, 0, 2)
        return np.ascontiguousarray(picture[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1])


@dataclass(frozen=True, slots=True)
class Display:
    """What a stream says of how its frames are displayed; colours by the numbers of ITU-T H.273.

    Args:
        width, height: as stored.
        matrix: the display matrix, nine numbers; None where there is none.
        sample_aspect: a pixel's width over its height.
        color_matrix, color_range, primaries, transfer: 2 (of the range: 0) where untagged.
    """

    pix_fmt: str
    width: int
    height: int
    matrix: tuple[int, ...] | None
    sample_aspect: Fraction
    color_matrix: int
    color_range: int
    primaries: int
    transfer: int

    @property
    def orientation(self) -> Orientation:
        """How it is turned."""
        return Orientation.of(self.matrix)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) as displayed; the side that is not widened stays as it is stored."""
        aspect = self.sample_aspect
        width = round(self.width * aspect) if aspect > 1 else self.width
        height = round(self.height / aspect) if aspect < 1 else self.height
        return (width, height) if self.orientation.transpose else (height, width)

    @property
    def needs_conversion(self) -> bool:
        """Whether the colours are beyond BT.709's or of high dynamic range."""
        return self.is_hdr or self.primaries in _WIDE_PRIMARIES

    @property
    def is_hdr(self) -> bool:
        """Whether the transfer function is PQ or HLG."""
        return self.transfer in _HDR_TRANSFERS

    @property
    def is_full_range(self) -> bool:
        """Whether black is 0, not 16 of 255."""
        return self.pix_fmt.startswith("yuvj") or self.color_range == _FULL_RANGE

    @property
    def assumed_matrix(self) -> int:
        """The colour matrix; of an untagged video, what players assume."""
        if self.color_matrix == _UNSPECIFIED:
            return 1 if self.width >= 1280 or self.height > 576 else 6
        return 6 if self.color_matrix == 5 else self.color_matrix

    @property
    def rendering(self) -> tuple[object, ...]:
        """Equal for two streams whose equal pixels are displayed alike."""
        transfer = 1 if self.transfer in _SAME_AS_BT709 else self.transfer
        primaries = 1 if self.primaries == _UNSPECIFIED else self.primaries
        return (self.size, self.orientation, self.assumed_matrix, self.is_full_range, primaries, transfer)

    def check(self) -> None:
        """Refuse colours that nothing here converts.

        Raises:
            DataError: naming them.
        """
        name = _UNKNOWN_MATRICES.get(self.color_matrix) or _UNKNOWN_TRANSFERS.get(self.transfer)
        if name:
            raise DataError(f"its colours are in {name}, which is not converted here; convert it to BT.709 first")


@dataclass(frozen=True, slots=True)
class DisplayedFrame:
    """A decoded frame, and how its stream is displayed."""

    frame: av.VideoFrame
    display: Display

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) as displayed."""
        return self.display.size

    def rgb(self, height: int | None = None, width: int | None = None) -> Frames:
        """[H, W, 3] as displayed, at its own size or scaled (averaged over areas) to another."""
        own, orientation = self.size, self.display.orientation
        shown = (height or own[0], width or own[1])
        h, w = shown[::-1] if orientation.transpose else shown
        smaller = h < self.frame.height or w < self.frame.width
        kernel = Interpolation.AREA if smaller else Interpolation.BILINEAR
        options: dict[str, Any] = {
            "interpolation": kernel | (_ACCURATE if self.display.needs_conversion else _ACCURATE_8)
        }
        if self.display.color_matrix == _UNSPECIFIED and self.display.assumed_matrix == 1:
            options["src_colorspace"] = Colorspace.ITU709
        if not self.display.needs_conversion:
            small = self.frame.reformat(width=w, height=h, format="rgb24", **options).to_ndarray()
            return orientation.apply(cast(Frames, small))
        deep = self.frame.reformat(width=w, height=h, format="rgb48le", **options).to_ndarray()
        primaries = self.display.primaries if self.display.primaries in PRIMARIES else 1
        transfer = self.display.transfer if self.display.transfer in VIDEO_TRANSFERS else 1
        white = 0xFFFF if self.display.is_full_range else _SWSCALE_WHITE
        codes = np.minimum(deep.astype(np.uint32) * 0xFFFF // white, 0xFFFF).astype(np.uint16)
        return orientation.apply(video_to_srgb(codes, primaries, transfer))

    def with_short_side(self, side: int, least: int = 2) -> Frames:
        """[H, W, 3] as displayed, shrunk so that the shorter side has `side` pixels, and no side fewer than `least`."""
        height, width = self.size
        scale = side / min(height, width)
        return self.rgb(max(least, round(height * scale)), max(least, round(width * scale)))


def video_stream(container: Any) -> Any:
    """The first video stream that is no cover picture.

    Raises:
        DataError: there is none, or no decoder for it.
    """
    moving = [one for one in container.streams.video if not one.disposition & av.stream.Disposition.attached_pic]
    if not moving:
        raise DataError("holds no video")
    stream = moving[0]
    if stream.codec_context is None:
        raise DataError("its video is in a format that no decoder here knows")
    return stream


def display_of(stream: Any, frame: av.VideoFrame) -> Display:
    """How a frame of a stream is displayed."""
    context = stream.codec_context
    aspect = stream.sample_aspect_ratio or context.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, _LARGEST_ASPECT) <= aspect <= _LARGEST_ASPECT:
        aspect = Fraction(1)
    side = cast(Any, frame.side_data).get(SideDataType.DISPLAYMATRIX)
    matrix = tuple(np.frombuffer(side, np.int32).tolist()) if side is not None else None
    return Display(
        pix_fmt=frame.format.name,
        width=frame.width,
        height=frame.height,
        matrix=matrix if matrix is not None and len(matrix) == 9 else None,
        sample_aspect=Fraction(aspect),
        color_matrix=int(frame.colorspace),
        color_range=int(frame.color_range),
        primaries=int(context.color_primaries),
        transfer=int(context.color_trc),
    )


def displayed_frames(container: Any) -> Iterator[DisplayedFrame]:
    """Every frame of an open file's video; all are displayed as the first one is, at its size.

    Raises:
        DataError: it holds no video, or colours that nothing here converts. And what broken files make FFmpeg raise.
    """
    stream = video_stream(container)
    stream.thread_type = "AUTO"
    display: Display | None = None
    for frame in container.decode(stream):
        if display is None:
            display = display_of(stream, frame)
            display.check()
        yield DisplayedFrame(frame, display)


def first_display(source: Path | io.BytesIO) -> Display:
    """How a video file is displayed, by its first frame.

    Raises:
        DataError: it holds no video, or no frame that can be decoded. And what broken files make FFmpeg raise.
    """
    with av.open(source if isinstance(source, io.BytesIO) else str(source), "r") as container:
        stream = video_stream(container)
        frame = next(iter(container.decode(stream)), None)
        if frame is None:
            raise DataError("no frame of it can be decoded")
        return display_of(stream, frame)

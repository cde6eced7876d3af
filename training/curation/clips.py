"""The third stage: clips as files of their own, copied packet by packet where that is exact.

A clip whose edges lie between the places where a copy may begin and end is made of three pieces: a few frames encoded
anew, the source's own packets, a few frames encoded anew. Where that cannot be done (not H.264, or a decoder does not
give back every frame), the whole clip is encoded.

What is encoded anew keeps the source's pixels with all its tags (colour matrix, range, primaries, transfer function,
sample aspect ratio, display matrix) where H.264 of 8 bits and 4:2:0 can hold them; else all of them are applied, and
the clip is BT.709 with square pixels, a side of odd length one pixel shorter. High dynamic range always is applied.
Every clip is opened again: one that would be displayed otherwise than its source is encoded whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from model.errors import DataError
from training.curation.clips_plan import Span
from training.curation.probe import PacketIndex
from training.curation.records import ClipRecord, SourceRecord, clip_id
from training.curation.tables import replace_file
from training.data.display import Display, DisplayedFrame, Orientation, first_display, video_stream

MP4_CODECS = frozenset({"h264", "hevc", "mpeg4", "vp9", "av1"})
"""What players expect in an mp4; clips of other codecs are Matroska."""
ENCODER = {"crf": "14", "preset": "fast", "threads": "1"}
"""One thread, so that the same frames give the same bytes."""
BITEXACT = {"fflags": "+bitexact"}
_EIGHT_BITS = frozenset({"yuv420p", "yuvj420p"})
_BT709 = 1
_CODEC_ERRORS = (FFmpegError, DataError, ValueError, TypeError)
"""What PyAV raises where a codec or a container cannot hold what it is given."""


@dataclass(frozen=True, slots=True)
class _Work:
    """A source and the frames of one clip in it, in ticks of the source."""

    path: Path
    index: PacketIndex
    codec: str
    display: Display
    start: int
    end: int
    copy_start: int
    copy_end: int

    @property
    def encoded_display(self) -> Display:
        """The source's, at the even size that 4:2:0 takes."""
        shown = self.display
        return dataclasses.replace(shown, width=shown.width & ~1, height=shown.height & ~1)


def cut_clips(
    source: SourceRecord,
    index: PacketIndex,
    spans: Sequence[Span],
    dataset: Path,
    on_fault: Callable[[float, Exception], None] | None = None,
) -> list[ClipRecord]:
    """Write each span's clip into the dataset folder. Doing it again gives the same files.

    Args:
        on_fault: called with a clip's start in seconds and what went wrong with it; the other clips are cut. None: the
            first one raises.

    Raises:
        DataError: the source cannot be read where a clip lies.
    """
    shown = np.append(np.sort(index.pts), index.end)
    display = first_display(Path(source.path))
    out = []
    for span in spans:
        ticks = (int(shown[frame]) for frame in (span.start, span.end, span.copy_start, span.copy_end))
        work = _Work(Path(source.path), index, source.codec, display, *ticks)
        try:
            out.append(_cut(source, work, span, dataset))
        except Exception as error:
            if on_fault is not None:
                on_fault(index.seconds(work.start), error)
            elif isinstance(error, FFmpegError):
                raise DataError(
                    f"{source.path} cannot be cut at {index.seconds(work.start):.2f} s: {error.strerror}"
                ) from error
            else:
                raise
    return out


def _cut(source: SourceRecord, work: _Work, span: Span, dataset: Path) -> ClipRecord:
    start_s, end_s = work.index.seconds(work.start), work.index.seconds(work.end)
    name = clip_id(source.sha256, start_s, end_s)
    how = "whole" if work.display.is_hdr else "copy" if span.exact else "edges"
    suffix = "mp4" if how != "copy" or source.codec in MP4_CODECS else "mkv"
    file = dataset / "clips" / f"{name}.{suffix}"
    written: Display | None = None
    if how != "whole":
        done = _with_new_edges(work, span, file) if how == "edges" else _copied(work, file)
        written = _displayed_as(work.display, file) if done else None
    if written is None:
        file.unlink(missing_ok=True)
        how, file = "whole", file.with_suffix(".mp4")
        written = _encode_whole(work, file)
    frames = span.end - span.start
    first, last = _bytes(work)
    height, width = written.size
    return ClipRecord(
        clip_id=name,
        source=source.sha256,
        start_s=start_s,
        end_s=end_s,
        start_pts=work.start,
        end_pts=work.end,
        byte_start=first,
        byte_end=last,
        file=f"clips/{file.name}",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        frames=frames,
        width=width,
        height=height,
        fps=Fraction(frames / (end_s - start_s)).limit_denominator(1001),
        encoded=how,
    )


def _displayed_as(display: Display, file: Path) -> Display | None:
    """How a written clip is displayed; None where that is otherwise than `display`."""
    try:
        written = first_display(file)
    except _CODEC_ERRORS:
        return None
    return written if written.rendering == display.rendering else None


def _bytes(work: _Work) -> tuple[int, int]:
    """Where the clip's packets lie in the source file."""
    inside = (work.index.pts >= work.start) & (work.index.pts < work.end) & (work.index.pos >= 0)
    if not inside.any():
        return 0, 0
    ends = work.index.pos[inside] + work.index.size[inside]
    return int(work.index.pos[inside].min()), int(ends.max())


def _packets(container: Any, stream: Any, first: int, end: int) -> Iterator[Any]:
    """The packets shown in [first, end), in decoding order, from the keyframe at `first`."""
    container.seek(first, stream=stream, backward=True, any_frame=False)
    started, missing = False, end
    for packet in container.demux(stream):
        if packet.pts is None or not packet.size or packet.is_discard:
            continue
        started = started or packet.pts == first
        if started and first <= packet.pts < end:
            missing = packet.pts
            yield packet
        elif started and packet.pts >= end and packet.is_keyframe:
            return
    if missing == end:
        raise DataError(f"no packets between {first} and {end}")


def _copied(work: _Work, target: Path) -> bool:
    """Write the clip as a copy; False, and nothing written, where that fails: a container cannot hold a gif, say."""
    try:
        replace_file(target, lambda partial: _copy(work, partial))
    except _CODEC_ERRORS:
        return False
    return True


def _copy(work: _Work, target: Path) -> None:
    with av.open(str(work.path)) as source, av.open(str(target), "w", options=BITEXACT) as out:
        stream = video_stream(source)
        copied = out.add_stream_from_template(stream)
        _set_matrix(copied, work.display)
        packets = list(_packets(source, stream, work.copy_start, work.copy_end))
        for packet, dts in zip(packets, _decoding_times(packets), strict=True):
            packet.pts, packet.dts = packet.pts - work.start, dts - work.start
            packet.stream = copied
            out.mux(packet)


def _set_matrix(stream: Any, display: Display) -> None:
    """Have the container turn the picture as the source's does."""
    if display.matrix is not None and display.orientation != Orientation():
        stream.set_display_matrix(display.matrix)


def _decoding_times(packets: Sequence[Any]) -> list[int]:
    """The packets' dts; where some lack one (Matroska stores none), times that come no later than their pts."""
    if all(packet.dts is not None for packet in packets):
        return [packet.dts for packet in packets]
    ordered = sorted(packet.pts for packet in packets)
    delay = max(time - packet.pts for time, packet in zip(ordered, packets, strict=True))
    return [time - delay for time in ordered]


def _decoded(work: _Work, first: int, end: int) -> Iterator[Any]:
    """The frames shown in [first, end), decoded from the keyframe before.

    Containers without an index (MPEG-TS) may land behind it: such a file is read from its beginning.
    """
    if first >= end:
        return
    for seeks in (True, False):
        with av.open(str(work.path)) as source:
            stream = video_stream(source)
            if seeks:
                keys = work.index.pts[work.index.key]
                before = keys[keys <= first]
                source.seek(int(before.max()) if len(before) else first, stream=stream, backward=True, any_frame=False)
            landed = False
            for frame in source.decode(stream):
                if frame.pts is None or frame.pts < first:
                    continue
                if seeks and not landed and frame.pts > first:
                    break
                landed = True
                if frame.pts >= end:
                    return
                yield frame
            if landed:
                return


def _encoded(work: _Work, first: int, end: int) -> Iterator[Any]:
    """The same as H.264 packets that carry their own parameter sets, without reordering."""
    encoder: Any = None
    for frame in _decoded(work, first, end):
        if encoder is None:
            encoder = av.CodecContext.create("libx264", "w")
            _describe(encoder, work.display)
            encoder.time_base = work.index.time_base
            encoder.options = {**ENCODER, "bf": "0"}
        yield from encoder.encode(_plain(work, frame))
    if encoder is not None:
        yield from encoder.encode(None)


def _describe(encoder: Any, display: Display) -> None:
    """Tell an encoder the size, the pixel format and the tags of the source."""
    encoder.width, encoder.height, encoder.pix_fmt = display.width, display.height, display.pix_fmt
    encoder.sample_aspect_ratio = display.sample_aspect
    encoder.colorspace, encoder.color_range = display.color_matrix, display.color_range
    encoder.color_primaries, encoder.color_trc = display.primaries, display.transfer


def _plain(work: _Work, frame: Any) -> Any:
    """A decoded frame as an encoder should take it: with no picture type from its first life."""
    if (frame.width, frame.height, frame.format.name) != (
        work.display.width,
        work.display.height,
        work.display.pix_fmt,
    ):
        raise DataError("its frames change size or format on the way")
    even = work.encoded_display
    if (even.width, even.height) != (frame.width, frame.height):
        frame = _cropped(frame, even)
    frame.pict_type = 0
    return frame


def _cropped(frame: Any, even: Display) -> Any:
    """A 4:2:0 frame without its odd last row or column."""
    out = av.VideoFrame(even.width, even.height, even.pix_fmt)
    for source, target in zip(frame.planes, out.planes, strict=True):
        pixels = np.frombuffer(cast(Any, source), np.uint8).reshape(-1, source.line_size)[
            : target.height, : target.width
        ]
        np.frombuffer(cast(Any, target), np.uint8).reshape(-1, target.line_size)[: target.height, : target.width] = (
            pixels
        )
    return out


def _with_new_edges(work: _Work, span: Span, target: Path) -> bool:
    """Write the clip in three pieces; False, and nothing written, where that does not give back every frame."""
    if (
        work.codec != "h264"
        or work.display != work.encoded_display
        or work.copy_start >= work.copy_end
        or work.display.pix_fmt not in _EIGHT_BITS
    ):
        return False
    joined = io.BytesIO()
    try:
        _join(work, joined)
        joined.seek(0)
        replace_file(target, lambda partial: _as_mp4(work, joined, partial, span.end - span.start))
    except _CODEC_ERRORS:
        return False
    return True


def _join(work: _Work, joined: io.BytesIO) -> None:
    """The pieces as an MPEG transport stream, which allows parameter sets to change."""
    with av.open(str(work.path)) as source, av.open(joined, "w", format="mpegts", options=BITEXACT) as out:
        stream = video_stream(source)
        target = out.add_stream_from_template(stream)
        filtered = BitStreamFilterContext("h264_mp4toannexb", stream)
        packets = _packets(source, stream, work.copy_start, work.copy_end)
        copied: list[Any] = [one for packet in packets for one in filtered.filter(packet)]
        times = _decoding_times(copied)
        delay = copied[0].pts - times[0]
        for packet in _encoded(work, work.start, work.copy_start):
            _mux(out, target, packet, work, packet.pts - delay)
        for packet, dts in zip(copied, times, strict=True):
            _mux(out, target, packet, work, dts)
        for packet in _encoded(work, work.copy_end, work.end):
            _mux(out, target, packet, work, packet.pts - delay)


def _mux(out: Any, target: Any, packet: Any, work: _Work, dts: int) -> None:
    packet.pts, packet.dts = packet.pts - work.start, dts - work.start
    packet.time_base, packet.stream = work.index.time_base, target
    out.mux(packet)


def _as_mp4(work: _Work, joined: io.BytesIO, target: Path, frames: int) -> None:
    """Put the stream into an mp4, and see that a decoder gives back as many frames as there should be."""
    with av.open(joined, "r") as source, av.open(str(target), "w", options=BITEXACT) as out:
        stream = video_stream(source)
        copied = out.add_stream_from_template(stream)
        _set_matrix(copied, work.display)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
    with av.open(str(target)) as container:
        decoded = sum(1 for _ in container.decode(video=0))
    if decoded != frames:
        raise DataError(f"{decoded} frames came back, not {frames}")


def _encode_whole(work: _Work, target: Path) -> Display:
    """Encode the whole clip anew, its tags kept where they can be, else applied; returns how it is displayed."""
    display = work.display
    holds = display.pix_fmt in _EIGHT_BITS and not display.is_hdr
    if holds:
        try:
            replace_file(target, lambda partial: _encode(work, partial, applied=False))
        except _CODEC_ERRORS:
            holds = False
    written = _displayed_as(work.encoded_display, target) if holds else None
    if written is None:
        replace_file(target, lambda partial: _encode(work, partial, applied=True))
        written = first_display(target)
    return written


def _encode(work: _Work, target: Path, *, applied: bool) -> None:
    """Write the clip's frames as H.264.

    Args:
        applied: whether as displayed, in BT.709; else as stored, with the source's tags.
    """
    with av.open(str(target), "w", options=BITEXACT) as out:
        stream: Any = None
        written = 0
        for frame in _decoded(work, work.start, work.end):
            plain = _as_displayed(work, frame) if applied else _plain(work, frame)
            if stream is None:
                stream = out.add_stream("libx264", options=ENCODER)
                if applied:
                    _describe(stream.codec_context, _bt709(plain))
                else:
                    _describe(stream.codec_context, work.encoded_display)
                    _set_matrix(stream, work.display)
                stream.codec_context.time_base = work.index.time_base
            plain.pts, plain.time_base = frame.pts - work.start, work.index.time_base
            out.mux(stream.encode(plain))
            written += 1
        if stream is None:
            raise DataError(f"no frame can be decoded from tick {work.start} on")
        out.mux(stream.encode(None))
    expected = int(((work.index.pts >= work.start) & (work.index.pts < work.end)).sum())
    if written != expected:
        raise DataError(f"{written} of its {expected} frames can be decoded")


def _as_displayed(work: _Work, frame: Any) -> Any:
    """A frame as a player displays it, in BT.709 of limited range; an odd last row or column is cut off."""
    picture = DisplayedFrame(frame, work.display).rgb()
    height, width = (side - side % 2 for side in picture.shape[:2])
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
    out = rgb.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP,
    )
    out.pict_type = 0
    return out


def _bt709(frame: Any) -> Display:
    return Display("yuv420p", frame.width, frame.height, None, Fraction(1), _BT709, ColorRange.MPEG, _BT709, _BT709)

"""The third stage: clips as files of their own, copied packet by packet where that is exact.

A clip whose edges lie between the places where a copy may begin and end is made of three pieces: a few frames encoded
anew, the source's own packets, a few frames encoded anew. Where that cannot be done (not H.264, or a decoder does not
give back every frame), the whole clip is encoded.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError

from model.errors import DataError
from training.curation.clips_plan import Span
from training.curation.probe import PacketIndex, video_stream
from training.curation.records import ClipRecord, SourceRecord, clip_id
from training.curation.tables import replace_file

MP4_CODECS = frozenset({"h264", "hevc", "mpeg4", "vp9", "av1"})
"""What players expect in an mp4; clips of other codecs are Matroska."""
ENCODER = {"crf": "14", "preset": "fast", "threads": "1"}
"""One thread, so that the same frames give the same bytes."""
BITEXACT = {"fflags": "+bitexact"}


@dataclass(frozen=True, slots=True)
class _Work:
    """A source and the frames of one clip in it, in ticks of the source."""

    path: Path
    index: PacketIndex
    codec: str
    start: int
    end: int
    copy_start: int
    copy_end: int


def cut_clips(source: SourceRecord, index: PacketIndex, spans: Sequence[Span], dataset: Path) -> list[ClipRecord]:
    """Write each span's clip into the dataset folder. Doing it again gives the same files.

    Raises:
        DataError: the source cannot be read where a clip lies.
    """
    shown = np.append(np.sort(index.pts), index.end)
    out = []
    for span in spans:
        ticks = (int(shown[frame]) for frame in (span.start, span.end, span.copy_start, span.copy_end))
        work = _Work(Path(source.path), index, source.codec, *ticks)
        try:
            out.append(_cut(source, work, span, dataset))
        except FFmpegError as error:
            raise DataError(
                f"{source.path} cannot be cut at {index.seconds(work.start):.2f} s: {error.strerror}"
            ) from error
    return out


def _cut(source: SourceRecord, work: _Work, span: Span, dataset: Path) -> ClipRecord:
    start_s, end_s = work.index.seconds(work.start), work.index.seconds(work.end)
    name = clip_id(source.sha256, start_s, end_s)
    how = "copy" if span.exact else "edges"
    suffix = "mp4" if how != "copy" or source.codec in MP4_CODECS else "mkv"
    file = dataset / "clips" / f"{name}.{suffix}"
    if not (_with_new_edges(work, span, file) if how == "edges" else _copied(work, file)):
        how, file = "whole", file.with_suffix(".mp4")
        replace_file(file, lambda partial: _encode(work, partial))
    frames = span.end - span.start
    first, last = _bytes(work)
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
        width=source.width,
        height=source.height,
        fps=Fraction(frames / (end_s - start_s)).limit_denominator(1001),
        encoded=how,
    )


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
    """Write the clip as a copy; False, and nothing written, where its container cannot hold the codec (a gif's)."""
    try:
        replace_file(target, lambda partial: _copy(work, partial))
    except ValueError as error:
        if isinstance(error, FFmpegError | DataError):
            raise
        return False
    return True


def _copy(work: _Work, target: Path) -> None:
    with av.open(str(work.path)) as source, av.open(str(target), "w", options=BITEXACT) as out:
        stream = video_stream(source)
        copied = out.add_stream_from_template(stream)
        for packet in _packets(source, stream, work.copy_start, work.copy_end):
            packet.pts -= work.start
            packet.dts = None if packet.dts is None else packet.dts - work.start
            packet.stream = copied
            out.mux(packet)


def _decoded(work: _Work, first: int, end: int) -> Iterator[Any]:
    """The frames shown in [first, end), decoded from the keyframe before."""
    if first >= end:
        return
    with av.open(str(work.path)) as source:
        stream = video_stream(source)
        keys = work.index.pts[work.index.key]
        before = keys[keys <= first]
        source.seek(int(before.max()) if len(before) else first, stream=stream, backward=True, any_frame=False)
        for frame in source.decode(stream):
            if frame.pts is None or frame.pts < first:
                continue
            if frame.pts >= end:
                return
            yield frame


def _encoded(work: _Work, first: int, end: int) -> Iterator[Any]:
    """The same as H.264 packets that carry their own parameter sets, without reordering."""
    encoder: Any = None
    for frame in _decoded(work, first, end):
        if encoder is None:
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuv420p"
            encoder.time_base = work.index.time_base
            encoder.options = {**ENCODER, "bf": "0"}
        yield from encoder.encode(_plain(frame))
    if encoder is not None:
        yield from encoder.encode(None)


def _plain(frame: Any) -> Any:
    """The frame as an encoder should take it: eight bits, and no picture type from its first life."""
    out = frame.reformat(format="yuv420p")
    out.pict_type, out.pts, out.time_base = 0, frame.pts, frame.time_base
    return out


def _with_new_edges(work: _Work, span: Span, target: Path) -> bool:
    """Write the clip in three pieces; False, and nothing written, where that does not give back every frame."""
    if work.codec != "h264" or work.copy_start >= work.copy_end:
        return False
    joined = io.BytesIO()
    try:
        _join(work, joined)
        joined.seek(0)
        replace_file(target, lambda partial: _as_mp4(joined, partial, span.end - span.start))
    except (FFmpegError, DataError):
        target.unlink(missing_ok=True)
        return False
    return True


def _join(work: _Work, joined: io.BytesIO) -> None:
    """The pieces as an MPEG transport stream, which allows parameter sets to change."""
    with av.open(str(work.path)) as source, av.open(joined, "w", format="mpegts", options=BITEXACT) as out:
        stream = video_stream(source)
        if stream.codec_context.pix_fmt != "yuv420p":
            raise DataError("only 8-bit 4:2:0 edges can be joined")
        target = out.add_stream_from_template(stream)
        filtered = BitStreamFilterContext("h264_mp4toannexb", stream)
        packets = _packets(source, stream, work.copy_start, work.copy_end)
        copied: list[Any] = [one for packet in packets for one in filtered.filter(packet)]
        delay = copied[0].pts - copied[0].dts
        for packet in _encoded(work, work.start, work.copy_start):
            _mux(out, target, packet, work, packet.pts - delay)
        for packet in copied:
            _mux(out, target, packet, work, packet.dts)
        for packet in _encoded(work, work.copy_end, work.end):
            _mux(out, target, packet, work, packet.pts - delay)


def _mux(out: Any, target: Any, packet: Any, work: _Work, dts: int) -> None:
    packet.pts, packet.dts = packet.pts - work.start, dts - work.start
    packet.time_base, packet.stream = work.index.time_base, target
    out.mux(packet)


def _as_mp4(joined: io.BytesIO, target: Path, frames: int) -> None:
    """Put the stream into an mp4, and see that a decoder gives back as many frames as there should be."""
    with av.open(joined, "r") as source, av.open(str(target), "w", options=BITEXACT) as out:
        stream = video_stream(source)
        copied = out.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
    with av.open(str(target)) as container:
        decoded = sum(1 for _ in container.decode(video=0))
    if decoded != frames:
        raise DataError(f"{decoded} frames came back, not {frames}")


def _encode(work: _Work, target: Path) -> None:
    """The whole clip encoded anew."""
    with av.open(str(target), "w", options=BITEXACT) as out:
        stream: Any = None
        for frame in _decoded(work, work.start, work.end):
            if stream is None:
                stream = out.add_stream("libx264", options=ENCODER)
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                stream.codec_context.time_base = work.index.time_base
            plain = _plain(frame)
            plain.pts = frame.pts - work.start
            out.mux(stream.encode(plain))
        if stream is None:
            raise DataError(f"no frame can be decoded from tick {work.start} on")
        out.mux(stream.encode(None))

"""Forty kinds of video that is broken or odd: each has its line, none stops the run, and the good ones give clips."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.main import app
from tests.unit.training.curation.colour_bars import bars, write_bars
from tests.unit.training.curation.film import small_film
from training.curation.probe import probe
from training.curation.records import ClipRecord, SourceRecord
from training.curation.tables import read_table

GOOD, BAD = "clips", "no clips"


def encode(
    path: Path, *, codec: str = "libx264", pix: str = "yuv420p", count: int = 30, gop: int = 10, **options: str
) -> None:
    """A little moving picture in any codec; `times` of frames may be uneven."""
    rate = Fraction(options.pop("rate", "24"))
    uneven = options.pop("uneven", "") == "yes"
    form = options.pop("form", None)
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, pix, gop
        stream.codec_context.time_base = Fraction(1, 240)
        draw = np.random.default_rng(0)
        ground = draw.integers(0, 255, (48, 200, 3), dtype=np.uint8)
        for t in range(count):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(ground[:, t : t + 64]), format="rgb24")
            frame.pts, frame.time_base = (t * 10 + (t % 3) * 4 * uneven), Fraction(1, 240)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def rotated(path: Path) -> None:
    """An mp4 whose display matrix turns the picture: the 3x3 matrix in the track's header, written by hand."""
    encode(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 0x10000
    turned = [0, one, 0, (1 << 32) - one, 0, 0, 0, 0, 0x40000000]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big") for value in turned)
    path.write_bytes(data)


def audio(path: Path, form: str | None = None) -> None:
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream("aac" if form != "wav" else "pcm_s16le", rate=44100)
        for k in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 44100, k * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def odd_size(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 95, 63, "yuv420p"
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bars(63, 95), format="rgb24")))
        container.mux(stream.encode(None))


def size_changes(path: Path) -> None:
    """Two transport streams one after the other, the second of other dimensions."""
    parts = []
    for k, picture in enumerate((bars(), bars(96, 64))):
        parts.append(write_bars(path.with_name(f"part-{k}.ts"), picture))
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()


def damaged(path: Path, change: Callable[[bytes], bytes], **options: str) -> None:
    encode(path, **options)
    path.write_bytes(change(path.read_bytes()))


def middle_lost(data: bytes) -> bytes:
    third = len(data) // 3
    return data[:third] + bytes(third // 2) + data[third + third // 2 :]


KINDS: dict[str, tuple[str, Callable[[Path], object], str | None]] = {
    "empty.mp4": (BAD, lambda p: p.write_bytes(b""), "empty"),
    "text.mp4": (BAD, lambda p: p.write_text("this is no video\n" * 99), "not a video"),
    "noise.mkv": (BAD, lambda p: p.write_bytes(np.random.default_rng(1).bytes(5000)), "not a video"),
    "zeros.mp4": (BAD, lambda p: p.write_bytes(bytes(5000)), "not a video"),
    "truncated.mp4": (BAD, lambda p: damaged(p, lambda d: d[: len(d) // 2]), "not a video"),
    "header-only.mp4": (BAD, lambda p: damaged(p, lambda d: d[:40]), "not a video"),
    "truncated-index-first.mp4": (
        BAD,
        lambda p: damaged(p, lambda d: d[: len(d) * 2 // 3], movflags="faststart"),
        None,
    ),
    "truncated.mkv": (GOOD, lambda p: damaged(p, lambda d: d[: len(d) * 2 // 3], count=48), None),
    "truncated.ts": (GOOD, lambda p: damaged(p, lambda d: d[: len(d) * 2 // 3], count=48), None),
    "middle-lost.ts": (GOOD, lambda p: damaged(p, middle_lost, count=60), None),
    "zero-frames.mkv": (BAD, lambda p: encode(p, count=0), None),
    "one-frame.mp4": (BAD, lambda p: encode(p, count=1), "at least 2"),
    "audio.mp4": (BAD, lambda p: audio(p, "mp4"), "holds no video"),
    "audio.mkv": (BAD, lambda p: audio(p, "matroska"), "holds no video"),
    "audio-wav.mp4": (BAD, lambda p: audio(p, "wav"), "holds no video"),
    "mkv-named.mp4": (GOOD, lambda p: encode(p, form="matroska"), None),
    "mp4-named.avi": (GOOD, lambda p: encode(p, form="mp4"), None),
    "uneven.mp4": (GOOD, lambda p: encode(p, uneven="yes"), None),
    "rotated.mp4": (GOOD, rotated, None),
    "ten-bit.mp4": (GOOD, lambda p: encode(p, pix="yuv420p10le"), None),
    "four-two-two.mp4": (GOOD, lambda p: encode(p, pix="yuv422p"), None),
    "four-four-four.mkv": (GOOD, lambda p: encode(p, pix="yuv444p"), None),
    "grey.mkv": (GOOD, lambda p: encode(p, codec="ffv1", pix="gray"), None),
    "no-times.h264": (BAD, lambda p: encode(p, form="h264"), "with a time"),
    "no-index.ts": (GOOD, lambda p: encode(p, form="mpegts"), None),
    "every-frame-key.avi": (GOOD, lambda p: encode(p, codec="mjpeg", pix="yuvj420p"), None),
    "one-key.mp4": (GOOD, lambda p: encode(p, gop=1000, sc_threshold="0"), None),
    "mpeg2.mpg": (GOOD, lambda p: encode(p, codec="mpeg2video", form="mpeg", bf="0"), None),
    "animation.gif": (GOOD, lambda p: encode(p, codec="gif", pix="rgb8"), None),
    "vp9.webm": (GOOD, lambda p: encode(p, codec="libvpx-vp9", **{"cpu-used": "8", "deadline": "realtime"}), None),
    "portrait.mp4": (GOOD, lambda p: write_bars(p, bars(), display=(0, 1, -1, 0)), None),
    "mirrored.mp4": (GOOD, lambda p: write_bars(p, bars(), display=(-1, 0, 0, 1)), None),
    "anamorphic.mp4": (GOOD, lambda p: write_bars(p, bars(), aspect=Fraction(64, 45)), None),
    "full-range.mp4": (GOOD, lambda p: write_bars(p, bars(), full=True), None),
    "bt601.mp4": (GOOD, lambda p: write_bars(p, bars(), matrix=6, primaries=6, transfer=6), None),
    "untagged.mp4": (GOOD, lambda p: write_bars(p, bars(), tagged=False), None),
    "hdr10.mp4": (GOOD, lambda p: write_bars(p, bars(), matrix=9, primaries=9, transfer=16), None),
    "hlg.mkv": (GOOD, lambda p: write_bars(p, bars(), matrix=9, primaries=9, transfer=18), None),
    "log-curve.mkv": (BAD, lambda p: write_bars(p, bars(), transfer=9), "not converted here"),
    "no-decoding-times.mkv": (GOOD, lambda p: write_bars(p, bars(), bf="2"), None),
    "odd-size.mkv": (GOOD, odd_size, None),
    "size-changes.ts": (BAD, size_changes, "the same time"),
    "folder.mp4": (BAD, lambda p: p.mkdir(), "cannot be read"),
    "gone.mp4": (BAD, lambda p: p.symlink_to(p.with_name("nowhere.mp4")), "cannot be read"),
}


def test_there_are_at_least_forty_kinds() -> None:
    assert len(KINDS) >= 40


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_probe_never_raises_and_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    state, make, told = KINDS[name]
    make(tmp_path / name)
    record = probe(tmp_path / name)
    if state == GOOD:
        assert record.error is None
        assert record.frames > 1
        assert record.duration_s > 0
        assert len(record.keyframes_s) >= 1
    else:
        assert record.error
        assert (told or "") in record.error


def test_what_is_odd_is_recorded(tmp_path: Path) -> None:
    for name in ("rotated.mp4", "uneven.mp4", "ten-bit.mp4"):
        KINDS[name][1](tmp_path / name)
    turned = probe(tmp_path / "rotated.mp4")
    assert (turned.width, turned.height, turned.rotation) == (48, 64, 90)
    assert probe(tmp_path / "uneven.mp4").variable
    assert probe(tmp_path / "ten-bit.mp4").pix_fmt == "yuv420p10le"


@pytest.mark.slow
def test_none_stops_the_run_and_each_has_its_line(tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for name, (_, make, _) in KINDS.items():
        if name not in ("folder.mp4", "gone.mp4"):  # no files, so a folder does not offer them
            make(films / name)
    small_film(films / "whole.mp4", frames=30)
    shutil.copy(films / "whole.mp4", films / "copy.mp4")
    arguments = [
        "--min-length",
        "0.4",
        "--max-length",
        "2",
        "--max-lost",
        "0.05",
        "--score",
        "none",
        "--caption",
        "none",
    ]
    run = CliRunner().invoke(app, ["curate", "run", str(films), "--out", str(tmp_path / "D"), *arguments, "--json"])
    assert run.exit_code == 0, run.output
    broken = {Path(one["path"]).name: one["error"] for one in json.loads(run.stdout.splitlines()[-1])["broken"]}
    assert all(": " in error and error.endswith(")") for error in broken.values())  # the stage and the exception's name
    sources = {Path(one.path).name: one for one in read_table(tmp_path / "D" / "sources.parquet", SourceRecord)}
    assert set(sources) == {path.name for path in films.iterdir()}
    clips = read_table(tmp_path / "D" / "clips.parquet", ClipRecord)
    page = (tmp_path / "D" / "report.html").read_text()
    for name, source in sources.items():
        assert name in page
        state = KINDS[name][0] if name in KINDS else GOOD
        if state == BAD:
            assert source.error
        assert source.error is None or not any(clip.source == source.sha256 for clip in clips)
    assert broken.keys() == {name for name, one in sources.items() if one.error}
    assert len(sources) >= 40
    assert sum(clip.source == sources["whole.mp4"].sha256 for clip in clips) >= 3
    assert len({clip.clip_id for clip in clips}) == len(clips)

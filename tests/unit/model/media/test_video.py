"""Encoding, decoding and the stills of a clip, read back by other means than the module's own."""

from __future__ import annotations

import hashlib
import io
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from model.errors import InvalidRequest
from model.media.video import contact_sheet_png, decode_video, encode_video, frames_sha256, probe, thumbnail_jpeg
from model.params import OutputFormat


def scene(count: int = 9, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """A smooth coloured pattern that drifts, so that each frame differs."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    frames = [
        np.stack([np.sin((x + 3 * t) / 17), np.cos((y - 2 * t) / 13), np.sin((x + y + t) / 23)], axis=-1)
        for t in range(count)
    ]
    return np.asarray((np.stack(frames) + 1) * 127.5, np.uint8)


def psnr(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((left.astype(float) - right) ** 2)))


def top_boxes(data: bytes) -> list[str]:
    """The top-level boxes of an mp4, by the standard's own layout."""
    names, at = [], 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        names.append(name.decode())
        at += size
    return names


def plain_av_frames(data: bytes) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(data), "r") as container:
        return np.stack([np.asarray(f.to_ndarray(format="rgb24"), np.uint8) for f in container.decode(video=0)])


def test_mp4_is_h264_yuv420p_bt709_with_the_index_first() -> None:
    data = encode_video(scene(), 7, "mp4")
    boxes = top_boxes(data)
    assert boxes[0] == "ftyp"
    assert boxes.index("moov") < boxes.index("mdat")
    with av.open(io.BytesIO(data), "r") as container:
        context = container.streams.video[0].codec_context
        assert (context.codec.name, context.pix_fmt) == ("h264", "yuv420p")
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert [int(tag) for tag in tags] == [1, 1, 1, 1]  # BT.709 three times, limited range
        assert container.streams.video[0].average_rate == Fraction(7)


@pytest.mark.parametrize(("format", "least"), [("mp4", 38.0), ("webm", 36.0), ("gif", 24.0)])
def test_frames_survive(format: OutputFormat, least: float) -> None:
    frames = scene()
    data = encode_video(frames, 10, format)
    decoded, fps = decode_video(data)
    assert decoded.shape == frames.shape
    assert fps == pytest.approx(10)
    assert psnr(decoded, frames) > least
    assert psnr(plain_av_frames(data), frames) > least - 2


@pytest.mark.parametrize("format", ["mp4", "webm"])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (90, 120, 40)])
def test_flat_colours_keep_their_values(format: OutputFormat, colour: tuple[int, int, int]) -> None:
    """A wrong matrix or range shifts these by 10 and more."""
    frames = np.full((3, 32, 32, 3), colour, np.uint8)
    decoded, _ = decode_video(encode_video(frames, 7, format))
    assert np.abs(decoded.astype(int) - frames).max() <= 2


def test_gif_plays_in_another_reader_and_repeats() -> None:
    frames = scene(5)
    with Image.open(io.BytesIO(encode_video(frames, 5, "gif"))) as picture:
        assert picture.info["loop"] == 0
        stills, delays = [], []
        for still in ImageSequence.Iterator(picture):
            stills.append(np.asarray(still.convert("RGB")))
            delays.append(still.info["duration"])
    assert delays == [200] * 5
    assert psnr(np.stack(stills), frames) > 24  # 256 colours for a pattern that spans the cube


def test_gif_is_never_faster_than_viewers_play() -> None:
    _, fps = decode_video(encode_video(scene(4), 60, "gif"))
    assert fps == pytest.approx(50)


@pytest.mark.parametrize("count", [1, 2, 128])
def test_any_count_keeps_the_index_first(count: int) -> None:
    info = probe(encode_video(scene(count, 16, 16), 60, "mp4"))
    assert (info.frames, info.faststart) == (count, True)


def test_odd_sizes_are_lengthened_by_one_pixel_in_mp4_only() -> None:
    frames = scene(3, 33, 47)
    mp4, _ = decode_video(encode_video(frames, 7, "mp4"))
    assert mp4.shape == (3, 34, 48, 3)
    assert psnr(mp4[:, :33, :47], frames) > 35
    assert decode_video(encode_video(frames, 7, "webm"))[0].shape == frames.shape
    assert decode_video(encode_video(frames, 7, "gif"))[0].shape == frames.shape


def test_probe_and_decode_take_bytes_and_paths_alike(tmp_path: Path) -> None:
    data = encode_video(scene(), 7, "webm")
    (tmp_path / "x.webm").write_bytes(data)
    info = probe(tmp_path / "x.webm")
    assert info == probe(data)
    assert (info.codec, info.frames, info.fps, info.height, info.width) == ("vp9", 9, 7.0, 64, 96)
    assert info.faststart is None
    assert frames_sha256(decode_video(str(tmp_path / "x.webm"))[0]) == frames_sha256(decode_video(data)[0])


def test_probe_sees_an_index_at_the_end() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=7)
        stream.width = stream.height = 32
        for frame in scene(3, 32, 32):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert top_boxes(out.getvalue()).index("mdat") < top_boxes(out.getvalue()).index("moov")
    assert probe(out.getvalue()).faststart is False


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00" * 4096])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    for reader in (decode_video, probe):
        with pytest.raises(InvalidRequest) as caught:
            reader(data)
        assert caught.value.code == "unreadable_video"


def test_half_a_video_is_refused() -> None:
    data = encode_video(scene(), 7, "mp4")
    with pytest.raises(InvalidRequest):
        decode_video(data[: data.index(b"mdat") + 8])


@pytest.mark.parametrize(
    ("frames", "fps", "named"),
    [
        (np.zeros((16, 16, 3), np.uint8), 7, "uint8"),
        (np.zeros((0, 16, 16, 3), np.uint8), 7, "uint8"),
        (np.zeros((2, 16, 16, 3), np.uint8), 0, "fps"),
    ],
)
def test_bad_arguments_are_named(frames: NDArray[np.uint8], fps: int, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        encode_video(frames, fps, "mp4")


def test_frames_sha256_covers_shape_and_pixels() -> None:
    frames = scene(2, 4, 6)
    assert frames_sha256(frames) == hashlib.sha256(b"2x4x6x3\n" + frames.tobytes()).hexdigest()
    assert frames_sha256(frames) != frames_sha256(frames.reshape(2, 6, 4, 3))
    assert frames_sha256(frames[:, :, ::-1]) == frames_sha256(frames[:, :, ::-1].copy())


def test_thumbnail_keeps_the_aspect_and_the_picture() -> None:
    frame = scene(1, 128, 1024)[0]
    with Image.open(io.BytesIO(thumbnail_jpeg(frame))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (512, 64))
    with Image.open(io.BytesIO(thumbnail_jpeg(frame[:, :96]))) as small:
        assert small.size == (96, 128)
        assert psnr(np.asarray(small), frame[:, :96]) > 35


def test_contact_sheet_shows_every_frame_in_an_even_grid() -> None:
    frames = np.stack([np.full((40, 60, 3), 10 * (n + 1), np.uint8) for n in range(14)])
    with Image.open(io.BytesIO(contact_sheet_png(frames, columns=5))) as picture:
        assert picture.format == "PNG"
        sheet = np.asarray(picture.convert("RGB"))
    lefts, tops = [], []
    for number in range(14):
        rows, columns = np.nonzero((sheet == 10 * (number + 1)).all(-1))
        box = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        lefts.append(int(box[1]))
        tops.append(int(box[0]))
        # A stray pixel of a label may have the same grey; a frame is a full block of it.
        assert (sheet[box[0] : box[0] + 40, box[1] : box[1] + 60] == 10 * (number + 1)).all(), number
    assert len({right - left for left, right in pairwise(lefts[:5])}) == 1
    assert lefts[:4] == lefts[5:9] == lefts[10:]
    assert [len(set(tops[at : at + 5])) for at in (0, 5, 10)] == [1, 1, 1]
    assert tops[5] - tops[0] == tops[10] - tops[5] > 40


def test_contact_sheet_labels_are_drawn_and_counted() -> None:
    frames = scene(4)
    assert contact_sheet_png(frames, labels=["a", "b", "c", "d"]) != contact_sheet_png(frames)
    with pytest.raises(InvalidRequest):
        contact_sheet_png(frames, labels=["a"])
    with pytest.raises(InvalidRequest):
        contact_sheet_png(frames, columns=0)


def test_contact_sheet_of_large_frames_stays_small_enough_to_look_at() -> None:
    with Image.open(io.BytesIO(contact_sheet_png(np.zeros((25, 576, 1024, 3), np.uint8)))) as picture:
        assert picture.width <= 1610

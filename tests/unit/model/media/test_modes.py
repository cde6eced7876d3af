"""Every way a PNG or TIFF may store pixels is right or refused: PNGs by the specification, TIFFs against tifffile."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from model.errors import UnreadableImage
from model.media.image import open_picture

SIDE = 16
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
COLOURS = np.random.default_rng(3).integers(0, 256, (256, 3)).astype(np.uint8)


def packed(samples: np.ndarray, depth: int) -> bytes:
    """Rows of a PNG: filter 0, samples of `depth` bits, each row padded to whole bytes."""
    rows = samples.reshape(len(samples), -1)
    if depth == 16:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return b"".join(b"\0" + np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in bits)


def png(samples: np.ndarray, kind: int, depth: int, **chunks: bytes) -> bytes:
    parts = {"IHDR": struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, kind, 0, 0, 0)}
    if kind == PALETTE:
        parts["PLTE"] = COLOURS[: 2**depth].tobytes()
    parts |= {**chunks, "IDAT": zlib.compress(packed(samples, depth)), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name.encode() + body + struct.pack(">I", zlib.crc32(name.encode() + body))
        for name, body in parts.items()
    )


def drawn(kind: int, depth: int) -> np.ndarray:
    shape = (SIDE, SIDE, CHANNELS[kind])
    return np.random.default_rng(depth + 10 * kind).integers(0, 2**depth, shape).astype(np.uint16)


def expected(samples: np.ndarray, kind: int, depth: int, clear: tuple[int, ...] | None = None) -> np.ndarray:
    """By the specification: the upper 8 bits, or the sample scaled to 255; what is transparent laid on white."""
    eight = samples >> 8 if depth == 16 else samples * (255 // (2**depth - 1))
    alpha = np.ones((SIDE, SIDE, 1))
    if kind == PALETTE:
        colours = COLOURS[samples[..., 0]]
    elif kind in {GREY_ALPHA, RGB_ALPHA}:
        colours, alpha = eight[..., :-1], eight[..., -1:] / 255
    else:
        colours = eight
    if clear is not None:
        alpha = (samples != clear).any(-1, keepdims=True).astype(float)
    return np.broadcast_to(colours * alpha + 255 * (1 - alpha), (SIDE, SIDE, 3))


@pytest.mark.parametrize(("kind", "depth"), [(kind, depth) for kind, depths in DEPTHS.items() for depth in depths])
def test_every_kind_of_png(kind: int, depth: int) -> None:
    samples = drawn(kind, depth)
    got = np.asarray(open_picture(png(samples, kind, depth)))
    assert np.abs(got - expected(samples, kind, depth)).max() <= 1


@pytest.mark.parametrize(("kind", "depth"), [(GREY, 1), (GREY, 2), (GREY, 4), (GREY, 8), (GREY, 16), (RGB, 8)])
def test_one_transparent_colour_of_a_png(kind: int, depth: int) -> None:
    samples = drawn(kind, depth)
    clear = tuple(int(one) for one in samples[3, 5])
    got = np.asarray(open_picture(png(samples, kind, depth, tRNS=struct.pack(f">{len(clear)}H", *clear))))
    assert tuple(got[3, 5]) == (255, 255, 255)
    assert np.abs(got - expected(samples, kind, depth, clear)).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_entries_of_a_palette(depth: int) -> None:
    samples = drawn(PALETTE, depth)
    alphas = np.random.default_rng(depth).integers(0, 256, 2**depth).astype(np.uint8)
    got = np.asarray(open_picture(png(samples, PALETTE, depth, tRNS=alphas.tobytes())))
    alpha = alphas[samples[..., 0]][..., None] / 255
    assert np.abs(got - (COLOURS[samples[..., 0]] * alpha + 255 * (1 - alpha))).max() <= 1


def test_a_16_bit_transparent_colour_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="alpha channel"):
        open_picture(png(drawn(RGB, 16), RGB, 16, tRNS=bytes(6)))


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def by_tifffile(data: bytes) -> np.ndarray:
    """8-bit RGB of grey and RGB TIFFs, by the second decoder and the TIFF 6.0 specification."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        array, bits = page.asarray(), page.bitspersample
        white_is_zero, planar = page.photometric == 0, page.planarconfig == 2
    if planar and array.ndim == 3 and array.shape[0] in {3, 4}:
        array = np.moveaxis(array, 0, -1)
    eight = (array >> (bits - 8)).astype(np.uint8) if bits > 8 else array.astype(np.uint8)
    eight = 255 - eight if white_is_zero else eight
    return np.repeat(eight[..., None], 3, -1) if eight.ndim == 2 else eight[..., :3]


NUMBERS = np.random.default_rng(7)
TIFFS = {
    f"{photometric}-{dtype.__name__}-{layout}-{order}": (shape, dtype, photometric, planar, order)
    for photometric, layouts in {
        "minisblack": [((SIDE, SIDE), "grey", None)],
        "miniswhite": [((SIDE, SIDE), "grey", None)],
        "rgb": [((SIDE, SIDE, 3), "chunky", "contig"), ((3, SIDE, SIDE), "planes", "separate")],
    }.items()
    for shape, layout, planar in layouts
    for dtype in (np.uint8, np.uint16, np.int16, np.uint32, np.float32)
    for order in ("<", ">")
}


@pytest.mark.parametrize("name", TIFFS)
def test_every_kind_of_tiff_is_right_or_refused(name: str) -> None:
    shape, dtype, photometric, planar, order = TIFFS[name]
    array = (NUMBERS.random(shape) * 250).astype(dtype)
    if dtype is np.uint16:
        array = NUMBERS.integers(0, 65536, shape).astype(dtype)
    options = {} if planar is None else {"planarconfig": planar}
    data = tiff(array, photometric=photometric, byteorder=order, **options)
    taken = dtype is np.uint8 or (dtype is np.uint16 and planar != "separate")
    if not taken or (dtype is np.uint16 and photometric == "miniswhite" and order == ">"):
        with pytest.raises(UnreadableImage, match="save it with") as refused:
            open_picture(data)
        assert refused.value.param == "image"
    else:
        got = np.asarray(open_picture(data))
        assert np.abs(got.astype(int) - by_tifffile(data)).max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_grey_of_an_odd_depth_is_right_or_refused(bits: int) -> None:
    levels = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * (2**bits // (SIDE * SIDE))).astype(np.uint16)
    body = np.packbits(
        ((levels[..., None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(SIDE, -1).astype(np.uint8), axis=1
    )
    entries = [(256, 3, SIDE), (257, 3, SIDE), (258, 3, bits), (259, 3, 1), (262, 3, 1), (277, 3, 1), (278, 3, SIDE)]
    entries += [(273, 4, 8 + 2 + 12 * 9 + 4), (279, 4, body.nbytes)]
    table = b"".join(
        struct.pack("<HHI", tag, kind, 1) + (struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value))
        for tag, kind, value in sorted(entries)
    )
    data = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + table + bytes(4) + body.tobytes()
    try:
        got = np.asarray(open_picture(data))
    except UnreadableImage:
        return
    assert np.abs(got[..., 0].astype(int) - (levels >> (bits - 8))).max() <= 1


def test_lab_and_cmyk_of_a_tiff() -> None:
    grey = Image.new("LAB", (SIDE, SIDE), (round(53.585 * 2.55), 128, 128))
    buffer = io.BytesIO()
    grey.save(buffer, "TIFF")
    assert np.abs(np.asarray(open_picture(buffer.getvalue())).astype(int) - 128).max() <= 2
    buffer = io.BytesIO()
    Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)).save(buffer, "TIFF")
    assert np.asarray(open_picture(buffer.getvalue()))[0, 0].tolist() == [0, 255, 255]

"""PNGs of too few rows are refused, of any depth, colour type and interlacing; black pictures are not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from model.errors import UnreadableImage
from model.media.image import open_picture

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
SIZE = (21, 13)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(depth: int, kind: int, value: int, *, interlaced: bool, lost_rows: int = 0) -> bytes:
    """Every byte of every row is `value`; the last rows of the stream are left out."""
    width, height = SIZE
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = []
    for x, y, dx, dy in passes:
        columns, count = len(range(x, width, dx)), len(range(y, height, dy))
        rows += [b"\0" + bytes([value]) * ((columns * depth * CHANNELS[kind] + 7) // 8)] * count
    rows = rows[: len(rows) - lost_rows]
    palette = chunk(b"PLTE", bytes(3) + b"\xc8\x3c\x28" * (2**depth - 1)) if kind == 3 else b""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


KINDS = [(1, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (8, 3), (8, 4), (16, 4), (8, 6), (16, 6)]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "kind"), KINDS)
def test_missing_rows_are_refused_and_black_ones_are_not(depth: int, kind: int, interlaced: bool) -> None:
    value = 1 if kind == 3 and depth == 8 else 0x7F
    for lost in (1, 5):
        with pytest.raises(UnreadableImage, match="fewer rows"):
            open_picture(png(depth, kind, value, interlaced=interlaced, lost_rows=lost))
    assert open_picture(png(depth, kind, value, interlaced=interlaced)).size == SIZE
    assert open_picture(png(depth, kind, 0, interlaced=interlaced)).size == SIZE


def test_a_picture_with_a_black_border_is_taken() -> None:
    pixels = np.full((64, 48, 3), 200, np.uint8)
    pixels[-4:] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert np.array_equal(np.asarray(open_picture(buffer.getvalue())), pixels)

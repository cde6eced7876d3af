"""PNGs whose data ends early: a complete zlib stream that holds fewer rows than the header says.

libpng and browsers call that damage; Pillow fills what is missing with zeros and says nothing. Counting the rows means
inflating the file a second time, so it is done only where the last rows are all zeros, as missing ones would be.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image

_SIGNATURE_BYTES: Final = 8
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Adam7: first column and row, and the steps between columns and rows (PNG specification, third edition, 8.1)."""
_PIECE: Final = 1 << 20


def has_every_row(data: bytes, picture: Image.Image) -> bool:
    """Whether a PNG's data fills the picture that was decoded from it.

    Args:
        data: the file, which Pillow has decoded without an error.
        picture: the decoded pixels, in the file's own mode.
    """
    last = max(0, picture.height - 2)
    if all(np.asarray(picture.crop((0, row, picture.width, row + 1))).any() for row in range(last, picture.height)):
        return True
    header = next((body for name, body in _chunks(data) if name == b"IHDR"), b"")
    if len(header) != 13:
        return True  # Pillow has read it all the same, so that it is no plain PNG
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(kind, 1)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    return _inflated(data) >= sum(_pass_bytes(width, height, bits, *one) for one in passes)


def _pass_bytes(width: int, height: int, bits: int, x: int, y: int, dx: int, dy: int) -> int:
    columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
    return rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0


def _inflated(data: bytes) -> int:
    """How many bytes the image data holds, without holding them."""
    inflate, count = zlib.decompressobj(), 0
    for name, body in _chunks(data):
        if name != b"IDAT":
            continue
        while body and not inflate.eof:
            count += len(inflate.decompress(body, _PIECE))
            body = inflate.unconsumed_tail
    return count


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = _SIGNATURE_BYTES
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        yield name, data[at + 8 : at + 8 + size]
        at += 12 + size

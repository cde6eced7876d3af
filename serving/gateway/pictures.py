"""A caller's picture as it is kept: fitted to the clip and nothing else of it, in a PNG that costs next to no time.

Fitting at the door keeps what is stored, and read again by the engine, as small as the clip, whatever was sent; fitting
a fitted picture again changes nothing, so the engine makes the same video of it. The PNG is not compressed: that took
ten times as long as everything else that a submission needs, for a third of the bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image

from model.image import as_rgb, fit_picture
from model.params import Params, TextToVideoParams

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_BLOCK: Final = 2**16 - 1
"""Bytes of the longest stored block."""


def kept(picture: Image.Image, params: Params) -> bytes:
    """The picture as the sampler will see it, as PNG.

    Args:
        picture: upright RGB, of any size.
        params: of a task that takes pictures.
    """
    if isinstance(params, TextToVideoParams):
        raise TypeError("text-to-video takes no pictures")
    return plain_png(fit_picture(picture, params.height, params.width, params.resize_mode))


def plain_png(picture: Image.Image) -> bytes:
    """An RGB picture as a PNG of stored scan lines without a filter (PNG specification, third edition, 10.1).

    Its pieces are put together once, at the end: copies were most of what it cost.
    """
    pixels = np.asarray(as_rgb(picture))
    height, width, _ = pixels.shape
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    lines[:, 0] = 0  # each line begins with its filter's number: none
    lines[:, 1:] = pixels.reshape(height, 3 * width)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", [head]), _chunk(b"IDAT", _stored(lines)), _chunk(b"IEND", []))
    return b"".join([_SIGNATURE, *(piece for chunk in chunks for piece in chunk)])


def _stored(lines: np.ndarray) -> list[bytes | memoryview]:
    """The pieces of a zlib stream of stored blocks (RFC 1950, 2.2; RFC 1951, 3.2.4)."""
    body = lines.reshape(-1).data
    pieces: list[bytes | memoryview] = [b"\x78\x01"]
    for first in range(0, len(body), _BLOCK):
        part = body[first : first + _BLOCK]
        pieces += [struct.pack("<BHH", first + _BLOCK >= len(body), len(part), len(part) ^ 0xFFFF), part]
    return [*pieces, struct.pack(">I", zlib.adler32(body))]


def _chunk(name: bytes, pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The pieces of a chunk: its length, name, body and checksum."""
    check = zlib.crc32(name)
    for piece in pieces:
        check = zlib.crc32(piece, check)
    return [struct.pack(">I", sum(map(len, pieces))), name, *pieces, struct.pack(">I", check)]

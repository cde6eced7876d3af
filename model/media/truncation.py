"""Pictures whose data ends early, or seems to: JPEGs without their end marker, and PNGs of too few rows.

JPEGs without an end marker are taken where every scan line is there, as phones' panoramas are. A decoder fills what is
missing with grey, so that it cannot say itself whether a file was cut. Two things can: the scans' headers say whether a
progressive file has all bits of all coefficients, and bytes put behind the last scan change the picture if, and only
if, its entropy-coded data was not complete (ITU-T T.81, annexes B and G).

A PNG may be a complete zlib stream that holds fewer rows than its header says. libpng and browsers call that damage;
Pillow fills what is missing with zeros and says nothing. Counting the rows means inflating the file a second time, so
it is done only where the last rows are all zeros, as missing ones would be.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

END: Final = b"\xff\xd9"
_PROGRESSIVE: Final = 0xC2
_SCAN: Final = 0xDA
_FRAMES: Final = frozenset({0xC0, 0xC1, _PROGRESSIVE})
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""
_NOISE: Final = bytes((number * 167 + 13) % 251 for number in range(1 << 16))
_FILL: Final = _NOISE + b"".join(bytes([0xFF, 0xD0 + number % 8]) + _NOISE[:512] for number in range(64))
"""Entropy-coded data that says something (no byte of it is 0xFF), then the same between restart markers: a decoder that
waits for one passes over everything else."""
_PNG_SIGNATURE_BYTES: Final = 8
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Adam7: first column and row, and the steps between columns and rows (PNG specification, third edition, 8.1)."""
_PIECE: Final = 1 << 20


def is_progressive(data: bytes) -> bool:
    """Whether the first frame header is a progressive one."""
    return next((kind == _PROGRESSIVE for kind, _ in _segments(data) if kind in _FRAMES), False)


def with_end_marker(data: bytes) -> bytes | None:
    """The file with its end marker put back; None where more than that is missing."""
    body = data.rstrip(b"\xff")
    if body.endswith(END) or not _has_every_scan(body):
        return None
    complete = body + END
    return complete if _digest(complete) == _digest(body + _FILL + END) else None


def _digest(data: bytes) -> bytes:
    """Of the decoded pixels, at an eighth of the size: every coefficient is read for it all the same."""
    with JpegImageFile(io.BytesIO(data)) as picture:
        if not is_progressive(data):
            # A missing AC coefficient of a small scale would not be seen in a progressive file; a baseline file's
            # blocks are lost whole.
            picture.draft(picture.mode, (max(1, picture.width // 8), max(1, picture.height // 8)))
        return hashlib.sha256(Image.Image.tobytes(picture)).digest()


def _has_every_scan(data: bytes) -> bool:
    """Whether the scans hold every coefficient of every component down to its last bit."""
    progressive, components, left = False, frozenset[int](), set[tuple[int, int]]()
    found = False
    for kind, body in _segments(data):
        if kind in _FRAMES and not components:
            progressive = kind == _PROGRESSIVE
            components = frozenset(body[6 + 3 * number] for number in range(body[5]))
            left = {(one, at) for one in components for at in range(64)}
        elif kind == _SCAN:
            found = True
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            if not progressive:
                first, last, bits = 0, 63, 0
            if bits & 0x0F == 0:
                scanned = {body[1 + 2 * number] for number in range(count)}
                left -= {(one, at) for one in scanned for at in range(first, last + 1)}
    return found and bool(components) and not left


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment; entropy-coded data is passed over."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        kind = data[at + 1]
        if kind in {0x00, 0xFF} or kind in _BARE:
            at += 1 if kind == 0xFF else 2
            continue
        if kind == END[1] or at + 4 > len(data):
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if length < 2 or len(body) < length - 2:
            return
        yield kind, body
        at += 2 + length


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
    at = _PNG_SIGNATURE_BYTES
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        yield name, data[at + 8 : at + 8 + size]
        at += 12 + size

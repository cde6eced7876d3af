"""ICC profiles of known numbers, written byte by byte (ICC.1:2001-04), for tests of colour conversion."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _text(name: str) -> bytes:
    data = name.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(data)) + data + bytes(4 + 4 + 2 + 1 + 67)


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at, len(data))
        body, at = body + data, at + len(data)
    header = struct.pack(">I4sI4s4s4s", at, b"lcms", 0x02400000, kind, space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(4 + 4 + 4 + 4 + 8 + 4)
    header += b"".join(map(_fixed, D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def to_xyz_d50(primaries: Sequence[float]) -> np.ndarray:
    """Linear RGB of these primaries to XYZ under D50; columns are red, green, blue."""
    corners = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in zip(primaries[::2], primaries[1::2], strict=True)])
    colours, white = corners[:3].T, corners[3]
    matrix = colours * np.linalg.solve(colours, white)
    gain = np.diag((BRADFORD @ np.array(D50)) / (BRADFORD @ white))
    return np.linalg.inv(BRADFORD) @ gain @ BRADFORD @ matrix


def rgb_profile(primaries: Sequence[float], gamma: float, name: str = "a test's RGB") -> bytes:
    """Three primaries and a power function. `primaries`: x, y of red, green, blue, white."""
    columns = to_xyz_d50(primaries).T
    tags = {b"desc": _text(name), b"wtpt": _xyz(D50)}
    for letter, column in zip((b"r", b"g", b"b"), columns, strict=True):
        tags |= {letter + b"XYZ": _xyz(column), letter + b"TRC": _gamma(gamma)}
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags)


def grey_profile(gamma: float) -> bytes:
    """A power function of grey."""
    return _profile(
        b"GRAY", b"XYZ ", b"mntr", {b"desc": _text("a test's grey"), b"wtpt": _xyz(D50), b"kTRC": _gamma(gamma)}
    )


def cmyk_profile(lab: Callable[[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """A table with the 16 corners of CMYK; between them LittleCMS interpolates. `lab`: L, a, b of a corner."""
    straight = bytes(range(256))
    corners = b"".join(
        bytes([round(light * 2.55), round(a + 128), round(b + 128)])
        for light, a, b in (lab(*inks) for inks in product((0, 1), repeat=4))
    )
    identity = b"".join(_fixed(value) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + straight * 4 + corners + straight * 3
    tags = {b"desc": _text("a test's CMYK"), b"wtpt": _xyz(D50), b"A2B0": table}
    return _profile(b"CMYK", b"Lab ", b"prtr", tags)

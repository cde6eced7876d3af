"""Reads Qt's binary resource files ("rcc"), of which some photographs come: a tree of names over blobs.

Layout, all big-endian: `qres`, version, offsets of the tree, the data and the names. A node is a name's offset and
flags; a folder goes on with the count and the index of its children, a file with locale and the offset of its data. A
name is its length, a hash, and UTF-16; data are their length and bytes, stored plainly, by zlib or by Zstandard.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from model.errors import DataError

_ZLIB, _FOLDER, _ZSTD = 1, 2, 4


@dataclass(frozen=True, slots=True)
class _Tables:
    raw: bytes
    node_size: int
    tree: int
    data: int
    names: int

    def node(self, index: int) -> tuple[str, int, int, int]:
        """Name, flags, and the two numbers that follow: (count, first child) or (locale, offset of the data)."""
        at = self.tree + index * self.node_size
        name, flags, first, second = struct.unpack_from(">IHII", self.raw, at)
        length = struct.unpack_from(">H", self.raw, self.names + name)[0]
        begin = self.names + name + 6
        return self.raw[begin : begin + 2 * length].decode("utf-16-be"), flags, first, second


def resource_files(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file inside a resource file, in its own order.

    Raises:
        DataError: it is no resource file, is cut short, or holds Zstandard data and there is no `zstd` program.
    """
    if raw[:4] != b"qres":
        raise DataError("this is no Qt resource file")
    try:
        version, tree, data, names = struct.unpack_from(">IIII", raw, 4)
        tables = _Tables(raw, 14 if version < 2 else 22, tree, data, names)
        yield from _walk(tables, 0, "")
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"a Qt resource file cannot be read: {error}; fetch it again") from error


def _walk(tables: _Tables, index: int, above: str) -> Iterator[tuple[str, bytes]]:
    name, flags, first, second = tables.node(index)
    path = f"{above}/{name}" if above and name else above or name
    if flags & _FOLDER:
        for child in range(second, second + first):
            yield from _walk(tables, child, path)
        return
    at = tables.data + second
    size = struct.unpack_from(">I", tables.raw, at)[0]
    yield path, _unpacked(tables.raw[at + 4 : at + 4 + size], flags)


def _unpacked(content: bytes, flags: int) -> bytes:
    if flags & _ZLIB:
        return zlib.decompress(content[4:])  # before the stream stands the length that comes out
    if flags & _ZSTD:
        if shutil.which("zstd") is None:
            raise DataError("a resource file is packed with Zstandard; install the program `zstd`")
        done = subprocess.run(["zstd", "-dc"], input=content, capture_output=True, check=False)
        if done.returncode:
            raise DataError(f"a resource file cannot be unpacked: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout
    return content

"""Qt's resource files: what was packed comes out, by path; what is no such file is refused."""

from __future__ import annotations

import struct
import zlib

import pytest

from model.errors import DataError
from training.data.qt_resources import resource_files


def name_entry(name: str) -> bytes:
    return struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")


def packed(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A version-2 resource file of one folder `pictures` with these files: flags and stored bytes by name."""
    names, data, offsets = b"", b"", {}
    for name in ("", "pictures", *files):
        offsets[name] = len(names)
        names += name_entry(name)
    nodes = [
        struct.pack(">IHIIQ", offsets[""], 2, 1, 1, 0),
        struct.pack(">IHIIQ", offsets["pictures"], 2, len(files), 2, 0),
    ]
    for name, (flags, stored) in files.items():
        nodes.append(struct.pack(">IHIIQ", offsets[name], flags, 0, len(data), 0))
        data += struct.pack(">I", len(stored)) + stored
    head = 20
    tree = b"".join(nodes)
    header = b"qres" + struct.pack(">IIII", 2, head, head + len(tree), head + len(tree) + len(data))
    return header + tree + data + names


def test_plain_and_deflated_files_come_out_by_path() -> None:
    text = b"a picture " * 50
    raw = packed({"one.webp": (0, text), "zwei-ü.webp": (1, struct.pack(">I", len(text)) + zlib.compress(text))})
    assert dict(resource_files(raw)) == {"pictures/one.webp": text, "pictures/zwei-ü.webp": text}


def test_what_is_no_resource_file_or_cut_short_is_refused() -> None:
    with pytest.raises(DataError, match="no Qt resource file"):
        list(resource_files(b"PK\x03\x04 something else"))
    raw = packed({"one.webp": (1, struct.pack(">I", 9) + zlib.compress(b"a picture"))})
    with pytest.raises(DataError, match="fetch it again"):
        list(resource_files(raw[:40]))
    broken = packed({"one.webp": (1, b"\0\0\0\x09 not deflated")})
    with pytest.raises(DataError, match="fetch it again"):
        list(resource_files(broken))

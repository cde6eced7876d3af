"""Pictures and bodies that mean no good, made here: cut short, blown up, of two natures, in odd modes."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(5).integers(0, 255, (40, 56, 3), np.uint8)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")


def encoded(format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pictures() -> Iterator[tuple[str, bytes]]:
    """More than 200 files, each with a name."""
    yield from _cut()
    yield from _bitten()
    yield from _bombs()
    yield from _polyglots()
    yield from _modes()


def _cut() -> Iterator[tuple[str, bytes]]:
    for format in FORMATS:
        whole = encoded(format)
        for part in (0, 1, 4, 8, 16, 30, len(whole) // 4, len(whole) // 2, len(whole) - 20, len(whole) - 1):
            yield f"{format} cut to {part}", whole[:part]


def _bitten() -> Iterator[tuple[str, bytes]]:
    drawn = np.random.default_rng(6)
    for format in FORMATS:
        whole = bytearray(encoded(format))
        for index in range(14):
            spoilt = bytearray(whole)
            for at in drawn.integers(0, len(whole), 1 + index * 3):
                spoilt[at] ^= int(drawn.integers(1, 256))
            yield f"{format} bitten {index}", bytes(spoilt)
        yield f"{format} header repeated", bytes(whole[:32]) * 200


def _bombs() -> Iterator[tuple[str, bytes]]:
    zeros = zlib.compress(b"\0" * 20_000_000, 9)
    huge = 2**31 - 1
    for width, height in ((30_000, 30_000), (huge, huge), (huge, 1), (1, huge), (0, 0), (100_000, 8)):
        yield f"PNG of {width}x{height}", png(width, height, zeros)
    yield "PNG that inflates beyond its size", png(16, 16, zeros)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"A" * 80_000_000, 9))
    yield "PNG with inflating text", png(16, 16, b"")[:33] + text
    yield "PNG with an inflating profile", png(16, 16, b"")[:33] + chunk(b"iCCP", b"p\0\0" + zeros)
    for side in (20_000, 65_535):
        head = bytearray(encoded("BMP"))
        head[18:26] = struct.pack("<ii", side, side)
        yield f"BMP of {side}", bytes(head)
        gif = bytearray(encoded("GIF"))
        gif[6:10] = struct.pack("<HH", side, side)
        yield f"GIF of {side}", bytes(gif)
    jpeg = bytearray(encoded("JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    yield "JPEG of 65500", bytes(jpeg)
    frames = [Image.new("P", (64, 64), index) for index in range(200)]
    yield "GIF of 200 frames", encoded("GIF", frames[0], save_all=True, append_images=frames[1:])
    yield "WebP of 20 frames", encoded("WEBP", frames[0].convert("RGB"), save_all=True, append_images=frames[1:20])
    yield "TIFF of 50 pages", encoded("TIFF", frames[0], save_all=True, append_images=frames[1:50])


def _polyglots() -> Iterator[tuple[str, bytes]]:
    tails = {
        "zip": b"PK\x03\x04" + b"\0" * 40,
        "html": b"<script>alert(1)</script>",
        "php": b"<?php system('id'); ?>",
        "png": encoded("PNG"),
        "zeros": b"\0" * 100_000,
    }
    for format in FORMATS:
        for name, tail in tails.items():
            yield f"{format} with {name} behind", encoded(format) + tail
            if name != "png":
                yield f"{format} with {name} before", tail + encoded(format)
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "SVG with entities", b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><svg>&b;</svg>'
    yield "PostScript", b"%!PS\n(/etc/passwd) (r) file"
    yield "MVG", b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x'"
    yield "PDF", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj"
    yield "text", b"just words " * 100
    yield "ELF", b"\x7fELF" + b"\0" * 200


def _modes() -> Iterator[tuple[str, bytes]]:
    grey = PIXELS[..., 0]
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F"):
        image = Image.fromarray(grey.astype(np.uint16)) if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
        for format in ("PNG", "TIFF", "JPEG"):
            try:
                yield f"{mode} in {format}", encoded(format, image)
            except (OSError, KeyError):  # the format has no such mode
                continue
    for size in ((1, 1), (8, 1), (7, 7), (1, 4000), (4000, 8)):
        yield f"PNG of {size}", encoded("PNG", Image.new("RGB", size))


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """Name, content type and body of requests that no client of good will sends."""
    texts: list[Any] = [None, [], {}, "x", 5, {"image": None}, {"image": {"data": 7}}, {"image": []}, [[[[]]]]]
    for body in texts:
        yield f"JSON {body!r}", "application/json", json.dumps(body).encode()
    raws = {"deep": b"[" * 100_000, "deep object": b'{"image":' * 50_000, "NaN": b'{"seed": NaN}', "empty": b""}
    for name, raw in raws.items():
        yield f"JSON {name}", "application/json", raw
    yield "JSON of wrong bytes", "application/json", b'{"image": "\xff\xfe"}'
    yield "JSON with a surrogate", "application/json", b'{"image": {"data": "\\ud800"}}'
    yield "JSON with a great number", "application/json", b'{"image": {"data": ""}, "seed": 1' + b"0" * 5000 + b"}"
    for boundary in ("", "x" * 300, "\u00e9", "a b"):
        yield f"form with boundary {boundary[:5]!r}", f"multipart/form-data; boundary={boundary}", b"--x\r\n\r\n--x--"
    form = "multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\nv\r\n'
    yield "form without end", form, part % b"image"
    yield "form of nothing", form, b"--x--\r\n"
    yield "form of many fields", form, b"".join(part % str(n).encode() for n in range(500)) + b"--x--\r\n"
    yield "form with a great header", form, b"--x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n--x--\r\n"
    yield "form with a great field", form, part.replace(b"v", b"v" * 200_000) % b"metadata" + b"--x--\r\n"
    name = b'--x\r\nContent-Disposition: form-data; name="image"; filename="../../../etc/passwd\0.png"\r\n\r\n'
    for field in ("metadata", "webhook"):
        nested = b"[" * 20_000 + b"]" * 20_000
        yield f"form with nested {field}", form, part.replace(b"v", nested) % field.encode() + b"--x--\r\n"
        opened = b'{"a":' * 10_000
        yield f"form with unfinished nested {field}", form, part.replace(b"v", opened) % field.encode() + b"--x--\r\n"
    many = json.dumps({"k" * 60_000: "v"}).encode()
    yield "form with a great key in metadata", form, part.replace(b"v", many) % b"metadata" + b"--x--\r\n"
    yield "JSON with great keys in metadata", "application/json", json.dumps({"metadata": {"k" * 10**6: "v"}}).encode()
    yield "form with a path as filename", form, name + encoded("PNG") + b"\r\n--x--\r\n"
    yield "form with a wrong charset", "multipart/form-data; boundary=x; charset=utf-99", part % b"seed" + b"--x--\r\n"
    yield "another type", "application/x-www-form-urlencoded", b"image=x"
    yield "XML", "application/xml", b"<image/>"

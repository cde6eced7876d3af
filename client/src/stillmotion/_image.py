"""Whatever holds a picture, as the bytes that are sent."""

from __future__ import annotations

import importlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stillmotion.types import Upload


class Readable(Protocol):
    """A file opened for reading bytes."""

    def read(self) -> bytes:
        """All that is left in it."""
        ...


class PillowImage(Protocol):
    """A `PIL.Image.Image`; described by what is used of it, so that Pillow need not be installed."""

    mode: str

    def save(self, fp: Any, format: str | None = None) -> None:
        """Write it."""
        ...

    def convert(self, mode: str) -> Any:
        """It in another mode."""
        ...


LocalImage = str | os.PathLike[str] | bytes | bytearray | memoryview | Readable | PillowImage
"""A path, the bytes of a file, an open binary file, or a Pillow image."""
ImageSource = LocalImage | Upload
"""A picture that is here, or one that `Client.upload` has sent."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})


@dataclass(frozen=True, slots=True)
class PicturePart:
    """A picture as a multipart part."""

    name: str
    data: bytes
    content_type: str


def read_image(image: LocalImage) -> PicturePart:
    """Read a picture whole, so that a retry can send it again.

    Raises:
        OSError: the file cannot be read.
        TypeError: none of the kinds accepted.
        ValueError: it is empty, or an open text file.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        name, data = "image", bytes(image)
    elif isinstance(image, str | os.PathLike):
        path = Path(image)
        name, data = path.name, path.read_bytes()
    elif hasattr(image, "save") and hasattr(image, "mode") and hasattr(image, "convert"):
        name, data = "image.png", _pillow_png(image)
    elif hasattr(image, "read"):
        name, data = Path(str(getattr(image, "name", "image"))).name, image.read()
        if not isinstance(data, bytes):
            raise ValueError("the image's file must be opened in binary mode ('rb')")
    else:
        raise TypeError(f"image must be a path, bytes, an open file or a Pillow image, not {type(image).__name__}")
    if not data:
        raise ValueError("the image is empty")
    return PicturePart(name, data, content_type(data))


def content_type(data: bytes) -> str:
    """The media type that the first bytes show; octet-stream where they show none we know."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), "application/octet-stream")


def _pillow_png(image: Any) -> bytes:
    """A PNG of it, turned upright: PNG would lose the orientation that a photograph's EXIF tells."""
    upright = importlib.import_module("PIL.ImageOps").exif_transpose(image)
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    out = io.BytesIO()
    upright.save(out, "PNG")
    return out.getvalue()

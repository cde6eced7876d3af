"""From any bytes that claim to be a picture to plain RGB pixels, or an error that says what to do.

Nothing about the picture is trusted: the format is told by its first bytes, the size is checked in the header before a
pixel is decoded, the whole picture is decoded (Pillow's `verify` accepts half a JPEG), and only pixels leave here: no
EXIF, no profile, no text. Imports Pillow and numpy, no torch.

Choices, so that the same file always gives the same pixels:
- transparent pixels are laid on white;
- EXIF orientation is applied, colour profiles are not;
- 16-bit greyscale keeps its upper 8 bits; floating-point and 32-bit pixels are refused, since their white is unknown;
- a phone's multi-picture JPEG (MPO) counts as its first picture; any other file with more than one frame is refused.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.errors import ImageTooLarge, InvalidRequest, UnreadableImage
from model.params import ResizeMode

# Opened by class rather than by Image.open: that warns of large pictures on stderr, and counts a phone's
# multi-picture JPEG as animated.
_OPENERS: Final[dict[str, tuple[Callable[[bytes], bool], Callable[[io.BytesIO], ImageFile]]]] = {
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), JpegImageFile),
    "PNG": (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WebP": (lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP", WebPImageFile),
    "GIF": (lambda head: head.startswith((b"GIF87a", b"GIF89a")), GifImageFile),
    "TIFF": (lambda head: head.startswith((b"II*\0", b"MM\0*")), TiffImageFile),
    "BMP": (lambda head: head.startswith(b"BM"), BmpImageFile),
}
ACCEPTED: Final = ", ".join(_OPENERS)
"""The formats taken, for messages."""

# What Pillow's parsers raise on hostile bytes.
_BROKEN: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a picture may be at most, and at least.

    Args:
        max_bytes: of the file.
        max_pixels: width times height, by the header.
        min_side: pixels of the shorter side.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    min_side: int = 8


DEFAULT_LIMITS: Final = ImageLimits()


def open_picture(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode one still picture, fully, to upright RGB without metadata.

    Raises:
        ImageTooLarge: more bytes or pixels than `limits` allow; `param` is "image".
        UnreadableImage: not a picture of an accepted format, broken, animated, or too narrow; `param` is "image".
    """
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {len(data)} bytes; the limit is {limits.max_bytes}: save it smaller", param="image"
        )
    with warnings.catch_warnings():
        # Pillow's parsers remark on damaged tags; what matters to us is whether the pixels decode.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        name, picture = _open_header(data)
        _check_size(picture.size, limits)
        try:
            if getattr(picture, "is_animated", False):
                raise UnreadableImage(
                    f"the {name} holds several frames; send one still picture", code="animated_image", param="image"
                )
            picture.load()
            plain = _to_rgb(_turn_upright(picture))
        except UnreadableImage:
            raise
        except (*_BROKEN, Image.DecompressionBombError) as error:
            raise UnreadableImage(
                f"the {name} is broken or cut short ({error}); send it again", param="image"
            ) from error
    plain.info = {}
    return plain


def _open_header(data: bytes) -> tuple[str, ImageFile]:
    """The format's name and the picture with only its header read."""
    if not data:
        raise UnreadableImage("the image is empty (0 bytes); send a picture", param="image")
    for name, (matches, opener) in _OPENERS.items():
        if matches(data[:16]):
            try:
                return name, opener(io.BytesIO(data))
            except _BROKEN as error:
                raise UnreadableImage(f"the {name} has a broken header ({error})", param="image") from error
    if b"<svg" in data[:2048].lower():
        raise UnreadableImage("an SVG is a drawing without pixels; export it as PNG first", param="image")
    raise UnreadableImage(f"this is no picture in a format we accept ({ACCEPTED}); convert it first", param="image")


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {width}x{height} = {width * height} pixels; the limit is {limits.max_pixels}: shrink it",
            param="image",
        )
    if min(width, height) < limits.min_side:
        raise UnreadableImage(
            f"the image is {width}x{height} pixels; each side needs at least {limits.min_side}",
            code="image_too_small",
            param="image",
        )


def _turn_upright(picture: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. Damaged EXIF counts as none: it says nothing about the pixels."""
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG)
    except _BROKEN:
        return picture
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB from any mode Pillow decodes to."""
    if picture.mode.startswith("I;16"):
        upper = np.asarray(picture).astype(np.uint16) >> 8
        return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
    if picture.mode in {"I", "F"}:
        raise UnreadableImage("the image has 32-bit pixels; save it with 8 or 16 bits a channel", param="image")
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        paper.alpha_composite(picture.convert("RGBA"))
        return paper.convert("RGB")
    return picture.convert("RGB")


def fit_picture(image: Image.Image, height: int, width: int, mode: ResizeMode) -> Image.Image:
    """Bring a picture to `width` x `height` pixels, by Lanczos resampling.

    `crop` keeps the aspect and fills the frame, cutting the centre out; `fit` keeps the whole picture and fills the
    rest with black bars; `stretch` ignores the aspect. What is cut off is never resampled, so that a very long
    picture costs no more than another.

    Raises:
        InvalidRequest: another mode.
    """
    if mode == "stretch":
        return _resample(image, width, height, (0.0, 0.0, float(image.width), float(image.height)))
    if mode == "crop":
        scale = max(width / image.width, height / image.height)
        across, down = min(image.width, width / scale), min(image.height, height / scale)
        left, top = (image.width - across) / 2, (image.height - down) / 2
        return _resample(image, width, height, (left, top, left + across, top + down))
    if mode == "fit":
        scale = min(width / image.width, height / image.height)
        across_px = min(width, max(1, round(image.width * scale)))
        down_px = min(height, max(1, round(image.height * scale)))
        inner = _resample(image, across_px, down_px, (0.0, 0.0, float(image.width), float(image.height)))
        framed = Image.new("RGB", (width, height), "black")
        framed.paste(inner, ((width - across_px) // 2, (height - down_px) // 2))
        return framed
    raise InvalidRequest(f"resize_mode must be crop, fit or stretch, not {mode!r}", param="resize_mode")


def _resample(image: Image.Image, width: int, height: int, box: tuple[float, float, float, float]) -> Image.Image:
    # Rounding may put the box a hair outside of the picture, which Pillow refuses.
    left, top, right, bottom = box
    inside = (max(0.0, left), max(0.0, top), min(float(image.width), right), min(float(image.height), bottom))
    image = as_rgb(image)
    if image.size == (width, height) and inside == (0.0, 0.0, float(width), float(height)):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS, box=inside)


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture itself where it is RGB (`convert` would copy it), else a conversion."""
    return image if image.mode == "RGB" else image.convert("RGB")


def to_png(image: Image.Image) -> bytes:
    """The picture as a PNG, without metadata."""
    buffer = io.BytesIO()
    as_rgb(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

"""Image decoding: from any bytes that claim to be a picture to plain sRGB pixels, or an error that says what to do.

Nothing about the picture is trusted: the format is told by its first bytes, the size is checked in the header before a
pixel is decoded, the whole picture is decoded (Pillow's `verify` accepts half a JPEG), and only pixels leave here: no
EXIF, no profile, no text. Imports Pillow and numpy, no torch.

Choices, so that the same file always gives the same pixels:
- colours are converted to sRGB by what the file says of them (model.media.color); `info["converted_from"]` then names
  the source's colour space, and `to_png` and `open_picture` carry it along;
- transparent pixels are laid on white;
- EXIF orientation is applied;
- 9 to 16 bits a channel keep their upper 8; floating-point, signed and 32-bit pixels are refused, since their white is
  unknown, and so is what Pillow is known to read wrongly (TIFFs of 16 bits in separate planes);
- a JPEG of more than `max_pixels` is decoded at a half, a quarter or an eighth of its size (`draft`), other formats of
  that size are refused: memory is bounded by `max_pixels` whatever a phone's sensor has;
- a phone's multi-picture JPEG (MPO) counts as its first picture; any other file with more than one frame is refused.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image, ImageCms
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.errors import ImageTooLarge, InvalidRequest, UnreadableImage
from model.media.color import Conversion, conversion_of, png_chunks
from model.media.truncation import has_every_row, is_progressive, with_end_marker
from model.params import ResizeMode

_HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def _open_heic(file: io.BytesIO) -> ImageFile:
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ModuleNotFoundError as error:
        raise UnreadableImage(
            "the image is a HEIC, and its reader is not installed here (pip install 'stillmotion-server[heic]'); "
            "or send it as JPEG",
            code="heic_unsupported",
            param="image",
        ) from error
    opened: ImageFile = HeifImageFile(file)  # type: ignore[no-untyped-call]
    return opened


# Opened by class rather than by Image.open: that warns of large pictures on stderr, and counts a phone's
# multi-picture JPEG as animated.
_OPENERS: Final[dict[str, tuple[Callable[[bytes], bool], Callable[[io.BytesIO], ImageFile]]]] = {
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), JpegImageFile),
    "PNG": (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WebP": (lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP", WebPImageFile),
    "GIF": (lambda head: head.startswith((b"GIF87a", b"GIF89a")), GifImageFile),
    "TIFF": (lambda head: head.startswith((b"II*\0", b"MM\0*")), TiffImageFile),
    "BMP": (lambda head: head.startswith(b"BM"), BmpImageFile),
    "AVIF": (lambda head: head[4:8] == b"ftyp" and head[8:12] in {b"avif", b"avis"}, AvifImageFile),
    "HEIC": (lambda head: head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS, _open_heic),
}
ACCEPTED: Final = ", ".join(_OPENERS)
"""The formats taken, for messages."""
HEAD_BYTES: Final = 12
"""How much of a file says which format it has."""


def picture_format(head: bytes) -> str | None:
    """The format that a file's first bytes claim; None for no picture that is taken."""
    return next((name for name, (claims, _) in _OPENERS.items() if claims(head)), None)


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
    ImageCms.PyCMSError,
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


_STRIP_PIXELS: Final = 1 << 20
"""Pixels converted at once: what a conversion needs beside the picture and its result stays small."""
_COLOUR_KEY: Final = "converted_from"
_PHOTOMETRIC, _BITS, _PLANAR, _SAMPLE_FORMAT = 262, 258, 284, 339
"""Tags of a TIFF."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a picture may be at most, and at least.

    Args:
        max_bytes: of the file.
        max_pixels: that are decoded into memory, width times height.
        min_side: pixels of the shorter side.
        jpeg_scale: how many times `max_pixels` a JPEG may have by its header, since it can be decoded smaller; a
            progressive one, whose coefficients are all held at once, two times.
    """

    max_bytes: int = 100_000_000
    max_pixels: int = 65_000_000
    min_side: int = 8
    jpeg_scale: int = 5

    def check_bytes(self, size: int) -> None:
        """Refuse a file of too many bytes. Raises ImageTooLarge."""
        if size > self.max_bytes:
            raise ImageTooLarge(
                f"the image has {size} bytes; the limit is {self.max_bytes}: save it smaller", param="image"
            )


DEFAULT_LIMITS: Final = ImageLimits()


def open_picture(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode one still picture, fully, to upright sRGB without metadata.

    Returns:
        An RGB image. Its `info` is empty, or has `converted_from`: the colour space that was converted to sRGB.

    Raises:
        ImageTooLarge: more bytes or pixels than `limits` allow; `param` is "image".
        UnreadableImage: not a picture of an accepted format, broken, animated, or too narrow; `param` is "image".
    """
    limits.check_bytes(len(data))
    with warnings.catch_warnings():
        # Pillow's parsers remark on damaged tags; what matters to us is whether the pixels decode.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        name, picture = _open_header(data)
        try:
            _check_size(picture.size, limits, _scale_limit(name, data, limits))
            if getattr(picture, "is_animated", False):
                raise UnreadableImage(
                    f"the {name} holds several frames; send one still picture", code="animated_image", param="image"
                )
            if isinstance(picture, TiffImageFile):
                _check_tiff(picture)
            picture = _load(name, picture, data, limits)
            orientation = _orientation(picture)  # before the pixels are converted: Exif goes with the file
            plain = _to_rgb(picture, png_chunks(data))
        except (ImageTooLarge, UnreadableImage):
            raise
        except (*_BROKEN, Image.DecompressionBombError) as error:
            raise UnreadableImage(
                f"the {name} is broken or cut short ({error}); send it again", param="image"
            ) from error
    return _turn_upright(plain, orientation)


def _open_header(data: bytes) -> tuple[str, ImageFile]:
    """The format's name and the picture with only its header read."""
    if not data:
        raise UnreadableImage("the image is empty (0 bytes); send a picture", param="image")
    for name, (matches, opener) in _OPENERS.items():
        if matches(data[:16]):
            try:
                return name, opener(io.BytesIO(data))
            except _BROKEN as error:
                if "unknown pixel mode" in str(error):
                    raise UnreadableImage(
                        f"the {name} stores its pixels in a way that we do not read; save it with 8 bits a channel",
                        param="image",
                    ) from error
                raise UnreadableImage(f"the {name} has a broken header ({error})", param="image") from error
    if b"<svg" in data[:2048].lower():
        raise UnreadableImage("an SVG is a drawing without pixels; export it as PNG first", param="image")
    raise UnreadableImage(f"this is no picture in a format we accept ({ACCEPTED}); convert it first", param="image")


def _scale_limit(name: str, data: bytes, limits: ImageLimits) -> int:
    """How many times `max_pixels` the header may say."""
    if name != "JPEG":
        return 1
    return min(2, limits.jpeg_scale) if is_progressive(data) else limits.jpeg_scale


def _check_size(size: tuple[int, int], limits: ImageLimits, times: int) -> None:
    width, height = size
    if width * height > limits.max_pixels * times:
        raise ImageTooLarge(
            f"the image has {width}x{height} = {width * height} pixels; the limit is {limits.max_pixels * times}: "
            + ("shrink it" if times > 2 else "shrink it, or save it as a JPEG that is not progressive"),
            param="image",
        )
    if min(width, height) < limits.min_side:
        raise UnreadableImage(
            f"the image is {width}x{height} pixels; each side needs at least {limits.min_side}",
            code="image_too_small",
            param="image",
        )


def _load(name: str, picture: ImageFile, data: bytes, limits: ImageLimits) -> ImageFile:
    """Decode the pixels; a JPEG at the largest scale that `max_pixels` allows."""
    _shrink(picture, limits)
    try:
        picture.load()
    except OSError:
        complete = with_end_marker(data) if name == "JPEG" else None
        if complete is None:
            raise
        picture = JpegImageFile(io.BytesIO(complete))
        _shrink(picture, limits)
        picture.load()
    if name == "PNG" and not has_every_row(data, picture):
        raise OSError("it holds fewer rows than its header says")
    return picture


def _shrink(picture: ImageFile, limits: ImageLimits) -> None:
    width, height = picture.size
    if isinstance(picture, JpegImageFile) and width * height > limits.max_pixels:
        scale = next(one for one in (2, 4, 8) if width * height <= limits.max_pixels * one * one)
        picture.draft(picture.mode, (width // scale, height // scale))


def _check_tiff(picture: TiffImageFile) -> None:
    """Refuse what Pillow reads wrongly or halfway."""
    tags: Any = picture.tag_v2
    bits = max(tags.get(_BITS, (1,)))
    if any(one != 1 for one in tags.get(_SAMPLE_FORMAT, (1,))) or bits > 16:
        raise UnreadableImage(
            "the image has signed, floating-point or 32-bit pixels; save it with 8 or 16 bits a channel", param="image"
        )
    if bits > 8 and tags.get(_PLANAR, 1) == 2 and len(tags.get(_BITS, (1,))) > 1:
        raise UnreadableImage(
            "the TIFF holds more than 8 bits a channel in separate planes; save it with 8 bits, or interleaved",
            param="image",
        )


def _orientation(picture: Image.Image) -> int | None:
    """Exif's. Damaged Exif counts as none: it says nothing about the pixels."""
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG)
    except _BROKEN:
        return None
    return orientation if isinstance(orientation, int) else None


def _turn_upright(picture: Image.Image, orientation: int | None) -> Image.Image:
    turn = None if orientation is None else _UPRIGHT.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: ImageFile, chunks: Mapping[bytes, bytes]) -> Image.Image:
    """8-bit sRGB from any mode Pillow decodes to, a strip of rows at a time."""
    conversion = conversion_of(picture, chunks)
    name = _carried(picture) if conversion is None else conversion.name
    _check_transparency(picture, chunks)
    to_eight_bits = _deep_grey(picture)
    plain = Image.new("RGB", picture.size)
    rows = max(1, _STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        plain.paste(_strip_to_rgb(to_eight_bits(strip), conversion), (0, top))
    plain.info = {} if name is None else {_COLOUR_KEY: name}
    return plain


def _strip_to_rgb(strip: Image.Image, conversion: Conversion | None) -> Image.Image:
    if strip.mode in {"I", "F"}:
        raise UnreadableImage("the image has 32-bit pixels; save it with 8 or 16 bits a channel", param="image")
    alpha = strip.convert("RGBA").getchannel("A") if strip.has_transparency_data else None
    # A picture with alpha goes by way of RGBA: that is where its palette and its premultiplied colours are resolved.
    colours = strip if alpha is None or strip.mode in {"L", "LA"} else strip.convert("RGBA")
    if conversion is None:
        colours = colours.convert("RGB")
    else:
        colours = conversion.apply(colours if colours.mode == conversion.mode else colours.convert(conversion.mode))
    if alpha is None:
        return colours
    return Image.composite(colours, Image.new("RGB", strip.size, "white"), alpha)


def _deep_grey(picture: ImageFile) -> Callable[[Image.Image], Image.Image]:
    """What makes 8 bits of a strip of 9- to 16-bit grey; any other strip stays."""
    if not picture.mode.startswith("I;16"):
        return lambda strip: strip
    tags: Any = picture.tag_v2 if isinstance(picture, TiffImageFile) else {}
    bits, white_is_zero = max(tags.get(_BITS, (16,))), tags.get(_PHOTOMETRIC) == 0
    clear = picture.info.get("transparency")

    def convert(strip: Image.Image) -> Image.Image:
        levels = np.asarray(strip).astype(np.uint16)
        upper = (levels >> (bits - 8)).astype(np.uint8)
        grey = Image.fromarray(255 - upper if white_is_zero else upper)
        if isinstance(clear, int):
            grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
        return grey

    return convert


def _check_transparency(picture: ImageFile, chunks: Mapping[bytes, bytes]) -> None:
    """A PNG's single transparent colour (tRNS) is given at the file's own depth; Pillow compares it at 8 bits."""
    header = chunks.get(b"IHDR", b"")
    clear = picture.info.get("transparency")
    if len(header) != 13 or clear is None:
        return
    depth, kind = header[8], header[9]
    if kind == 2 and depth == 16:
        raise UnreadableImage(
            "the PNG marks one 16-bit colour as transparent; save it with an alpha channel or without", param="image"
        )
    if kind == 0 and depth < 8 and isinstance(clear, int) and picture.mode == "L":
        picture.info["transparency"] = clear * 255 // (2**depth - 1)


def _carried(picture: ImageFile) -> str | None:
    """What `to_png` wrote of an earlier conversion: one line of printable ASCII, since anybody may have written it."""
    name = picture.info.get(_COLOUR_KEY)
    return name if isinstance(name, str) and len(name) <= 64 and name.isascii() and name.isprintable() else None


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
        framed.info = dict(image.info)
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


def converted_from(image: Image.Image) -> str | None:
    """The colour space that `open_picture` converted from; None where nothing was converted."""
    name = image.info.get(_COLOUR_KEY)
    return name if isinstance(name, str) else None


def to_png(image: Image.Image) -> bytes:
    """The picture as a PNG, without metadata but for the colour space it was converted from."""
    buffer, text = io.BytesIO(), PngInfo()
    if (name := converted_from(image)) is not None:
        text.add_text(_COLOUR_KEY, name)
    as_rgb(image).save(buffer, "PNG", compress_level=1, pnginfo=text)
    return buffer.getvalue()

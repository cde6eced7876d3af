"""Colour management: pixels of any colour space to sRGB (IEC 61966-2-1), by the profile that the file carries.

What a file may carry, and what counts, in the order of the PNG specification (third edition, section 4.3):
- a cICP chunk: primaries and transfer function by the numbers of ITU-T H.273, PQ and HLG among them;
- an ICC profile of RGB, grey, CMYK or Lab (PNG, JPEG, WebP, TIFF, AVIF, HEIC), converted by LittleCMS with relative
  colorimetric intent and black point compensation;
- an sRGB chunk: nothing to do;
- gAMA and cHRM chunks: a power function and primaries;
- Exif's interoperability index R03: Adobe RGB, which cameras write in place of a profile (DCF 2.0).

Anything else is sRGB. A damaged profile, or one of another kind than the pixels, counts as none: viewers do the same.
High dynamic range is brought to sRGB with diffuse white at 203 cd/m2 (ITU-R BT.2408); what is brighter is clipped, all
three channels by the same factor, so that its hue stays. Imports Pillow and numpy, no torch.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = np.ndarray[Any, np.dtype[np.float32]]
Transfer = Callable[[Pixels], Pixels]

D65: Final = (0.3127, 0.3290)
_SRGB: Final = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *D65)
PRIMARIES: Final[Mapping[int, tuple[float, ...]]] = {
    1: _SRGB,
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.640, 0.330, 0.290, 0.600, 0.150, 0.060, *D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *D65),
}
"""ITU-T H.273, table 2: x and y of red, green, blue and white."""
_ADOBE_RGB: Final = (0.640, 0.330, 0.210, 0.710, 0.150, 0.060, *D65)
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_DIFFUSE_WHITE: Final = 203.0
"""cd/m2 (ITU-R BT.2408)."""
_INTEROPERABILITY_IFD: Final = 0xA005
_MODES: Final = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}


@dataclass(frozen=True, slots=True)
class Conversion:
    """How a picture's pixels become sRGB.

    Args:
        name: of the source's colour space, for people.
        mode: Pillow's mode that `apply` takes: RGB, L, CMYK or LAB.
        apply: such an image, or a part of it, to RGB in sRGB.
    """

    name: str
    mode: str
    apply: Callable[[Image.Image], Image.Image]


def conversion_of(picture: Image.Image, chunks: Mapping[bytes, bytes]) -> Conversion | None:
    """What brings the picture to sRGB; None where it is sRGB already, or says nothing.

    Args:
        picture: as opened by Pillow; its pixels need not be loaded.
        chunks: of a PNG, before its pixels (`png_chunks`); of another file, empty.
    """
    if b"cICP" in chunks:
        return _from_cicp(chunks[b"cICP"])
    profile = picture.info.get("icc_profile")
    if isinstance(profile, bytes) and profile:
        return _from_icc(profile, picture.mode)
    if picture.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(lab, ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return Conversion("CIELAB", "LAB", lambda image: _transformed(image, transform))
    if b"sRGB" in chunks:
        return None
    if b"gAMA" in chunks:
        return _from_gamma(chunks)
    return _power("Adobe RGB (Exif)", 563 / 256, _ADOBE_RGB) if _is_adobe_by_exif(picture) else None


def png_chunks(data: bytes) -> dict[bytes, bytes]:
    """A PNG's chunks before its pixels, by name; the first of each name. Of another file, none."""
    return dict(reversed(list(_chunks(data)))) if data.startswith(b"\x89PNG\r\n\x1a\n") else {}


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 8 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        if kind == b"IDAT" or at + 12 + length > len(data):
            return
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def _from_icc(profile: bytes, mode: str) -> Conversion | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        taken = _MODES.get(space)
        grey = mode in {"1", "L", "LA", "La"} or mode.startswith("I;16")
        fits = {"L": grey, "CMYK": mode == "CMYK", "LAB": mode == "LAB", "RGB": mode not in {"CMYK", "LAB"}}
        if taken is None or not fits[taken]:
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            taken,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        name = ImageCms.getProfileDescription(source)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # damaged: viewers show such a picture as sRGB
    conversion = Conversion(
        _plain(name) or f"an ICC profile ({space})", taken, lambda image: _transformed(image, transform)
    )
    return None if _changes_nothing(conversion) else conversion


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    changed = ImageCms.applyTransform(image, transform)
    assert changed is not None, "only a transform in place gives none"
    return changed


def _changes_nothing(conversion: Conversion) -> bool:
    """Whether RGB comes out within a level of what went in: most profiles are sRGB's own, under many names."""
    if conversion.mode != "RGB":
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    out = np.asarray(conversion.apply(Image.fromarray(grid)))
    return int(np.abs(out.astype(int) - grid).max()) <= 1


def _from_cicp(chunk: bytes) -> Conversion | None:
    if len(chunk) != 4 or chunk[0] not in PRIMARIES or chunk[1] not in _TRANSFERS or chunk[2] != 0:
        return None
    primaries, transfer, _, full_range = chunk
    to_linear = _TRANSFERS[transfer]

    def decode(code: Pixels) -> Pixels:
        return to_linear(code if full_range else ((code * 255 - 16) / 219).clip(0, 1))

    return _by_matrix(f"cICP {primaries}/{transfer}", decode, PRIMARIES[primaries])


def _from_gamma(chunks: Mapping[bytes, bytes]) -> Conversion | None:
    try:
        gamma = struct.unpack(">I", chunks[b"gAMA"])[0] / 100_000
        numbers = [one / 100_000 for one in struct.unpack(">8I", chunks[b"cHRM"])] if b"cHRM" in chunks else []
    except struct.error:
        return None
    if not 0.01 <= gamma <= 10:
        return None
    # cHRM has the white point first.
    primaries = (*numbers[2:], *numbers[:2]) if numbers else _SRGB
    if abs(gamma - 0.45455) < 0.001:  # what encoders write for sRGB itself
        same = np.allclose(primaries, _SRGB, atol=0.002)
        return None if same else _by_matrix("gAMA and cHRM", _srgb_to_linear, primaries)
    return _power(f"gAMA {gamma:.3g}", 1 / gamma, primaries)


def _power(name: str, exponent: float, primaries: tuple[float, ...]) -> Conversion | None:
    return _by_matrix(name, lambda code: np.power(code, np.float32(exponent)), primaries)


def _by_matrix(name: str, decode: Transfer, primaries: tuple[float, ...]) -> Conversion | None:
    """Decode to linear light by a table, change primaries by a matrix, encode as sRGB."""
    try:
        matrix = (np.linalg.inv(_to_xyz(_SRGB)) @ _to_xyz(primaries)).astype(np.float32)
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return None
    if not np.isfinite(matrix).all():
        return None
    table = decode(np.linspace(0, 1, 256, dtype=np.float32))

    def apply(image: Image.Image) -> Image.Image:
        linear = table[np.asarray(image)] @ matrix.T
        linear /= np.maximum(linear.max(axis=-1, keepdims=True), 1.0)
        return Image.fromarray((_srgb_from_linear(linear) * 255).round().astype(np.uint8))

    conversion = Conversion(name, "RGB", apply)
    return None if _changes_nothing(conversion) else conversion


def _to_xyz(primaries: tuple[float, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Linear RGB to CIE XYZ, white adapted to D65 (Bradford)."""
    corners = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in zip(primaries[::2], primaries[1::2], strict=True)])
    colours, white = corners[:3].T, corners[3]
    matrix = colours * np.linalg.solve(colours, white)
    x, y = D65
    target = np.array([x / y, 1.0, (1 - x - y) / y])
    gain = np.diag((_BRADFORD @ target) / (_BRADFORD @ white))
    adapted: np.ndarray[Any, np.dtype[np.float64]] = np.linalg.inv(_BRADFORD) @ gain @ _BRADFORD @ matrix
    return adapted


def _srgb_to_linear(code: Pixels) -> Pixels:
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _srgb_from_linear(light: Pixels) -> Pixels:
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


def _pq_to_linear(code: Pixels) -> Pixels:
    """SMPTE ST 2084, in units of diffuse white."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = code.astype(np.float64) ** (1 / m2)
    nits = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    return (nits / _DIFFUSE_WHITE).astype(np.float32)


def _hlg_to_linear(code: Pixels) -> Pixels:
    """ITU-R BT.2100's hybrid log-gamma on a display of 1,000 cd/m2, in units of diffuse white (per channel)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return (1000 * scene**1.2 / _DIFFUSE_WHITE).astype(np.float32)


_TRANSFERS: Final[Mapping[int, Transfer]] = {
    # Camera curves (BT.709 and its kin) count as sRGB: viewers show them so.
    **dict.fromkeys((1, 6, 13, 14, 15), _srgb_to_linear),
    4: lambda code: np.power(code, np.float32(2.2)),
    5: lambda code: np.power(code, np.float32(2.8)),
    8: lambda code: code,
    16: _pq_to_linear,
    18: _hlg_to_linear,
}
"""ITU-T H.273, table 3."""


def video_to_srgb(codes: NDArray[np.uint16], primaries: int, transfer: int) -> NDArray[np.uint8]:
    """Full-range RGB of 16 bits, [..., 3], in a video's colour space as sRGB of 8 bits: diffuse white at 203 cd/m2.

    Args:
        primaries, transfer: by the numbers of ITU-T H.273; both must be known (`PRIMARIES`, `VIDEO_TRANSFERS`).
    """
    table = _TRANSFERS[transfer](np.linspace(0, 1, 65536, dtype=np.float32))
    matrix = (np.linalg.inv(_to_xyz(_SRGB)) @ _to_xyz(PRIMARIES[primaries])).astype(np.float32)
    linear = table[codes] @ matrix.T
    linear /= np.maximum(linear.max(axis=-1, keepdims=True), 1.0)
    return np.asarray((_srgb_from_linear(linear) * 255).round(), np.uint8)


VIDEO_TRANSFERS: Final = frozenset(_TRANSFERS)
"""Transfer functions that `video_to_srgb` knows."""


def _is_adobe_by_exif(picture: Image.Image) -> bool:
    try:
        return picture.getexif().get_ifd(_INTEROPERABILITY_IFD).get(1) == "R03"
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return False  # damaged Exif says nothing


def _plain(name: str) -> str:
    """A profile's own name as one short line of ASCII: it goes into manifests."""
    return "".join(one for one in " ".join(name.split()) if " " <= one <= "~")[:64].strip()

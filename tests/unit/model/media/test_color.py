"""Pixels of any colour space become sRGB: by profiles of known numbers, in every format, against our own arithmetic."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from model.errors import UnreadableImage
from model.media.color import PRIMARIES
from model.media.image import converted_from, fit_picture, open_picture, to_png
from tests.support.icc import D50, cmyk_profile, grey_profile, rgb_profile, to_xyz_d50

CASES = Path("tests") / "data" / "pictures"
SRGB = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, 0.3127, 0.3290)
P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290)
ADOBE = (0.640, 0.330, 0.210, 0.710, 0.150, 0.060, 0.3127, 0.3290)
PROPHOTO = (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001, 0.3457, 0.3585)
SPACES = {
    "p3": (P3, 2.2),
    "adobe": (ADOBE, 563 / 256),
    "prophoto": (PROPHOTO, 1.8),
    "2020": (PRIMARIES[9], 2.4),
    "linear": (SRGB, 1.0),
}
# In gamut of all of the above, so that nothing is clipped.
COLOURS = np.array(
    [[128, 128, 128], [224, 172, 105], [60, 120, 200], [200, 60, 40], [250, 250, 245], [30, 80, 30], [90, 20, 110]],
    np.uint8,
)


def to_linear(code: np.ndarray) -> np.ndarray:
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def stored_in(primaries: tuple[float, ...], gamma: float) -> np.ndarray:
    """COLOURS, which are sRGB, as such a space's code values (independent of the code under test)."""
    linear = to_linear(COLOURS / 255) @ to_xyz_d50(SRGB).T @ np.linalg.inv(to_xyz_d50(primaries)).T
    assert linear.min() > -0.002
    return (linear.clip(0, 1) ** (1 / gamma) * 255).round().astype(np.uint8)


def swatches(colours: np.ndarray) -> Image.Image:
    return Image.fromarray(np.repeat(np.repeat(colours[None], 32, 0), 32, 1))


def centres(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)[16, 16::32].astype(int)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(image: Image.Image, **chunks: bytes) -> bytes:
    """An RGB PNG with these chunks before its pixels."""
    parts = {"IHDR": struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 0), **chunks}
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image))
    parts |= {"IDAT": zlib.compress(rows), "IEND": b""}
    packed = (
        struct.pack(">I", len(body)) + name.encode() + body + struct.pack(">I", zlib.crc32(name.encode() + body))
        for name, body in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("name", ["swatch_p3.jpg", "swatch_adobergb.png"])
def test_tagged_swatches_are_the_untagged_ones(name: str, root: Path) -> None:
    right = open_picture((root / CASES / "swatch_srgb.png").read_bytes())
    got = open_picture((root / CASES / name).read_bytes())
    differences = np.abs(np.asarray(got, int) - np.asarray(right, int))
    assert np.median(differences.reshape(-1, 3).max(-1)) <= 3
    assert converted_from(got) and converted_from(right) is None


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
@pytest.mark.parametrize("space", SPACES)
def test_every_profile_in_every_format(space: str, format: str) -> None:
    primaries, gamma = SPACES[space]
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}}
    data = encode(
        swatches(stored_in(primaries, gamma)),
        format,
        icc_profile=rgb_profile(primaries, gamma),
        **options.get(format, {}),
    )
    # Code values of linear light are coarse in the dark, and wide spaces spread a level of theirs over several of ours.
    limit = {"linear": 14, "prophoto": 5}.get(space, 3) + (3 if format in {"JPEG", "AVIF"} else 0)
    picture = open_picture(data)
    assert np.abs(centres(picture) - COLOURS).max() <= limit
    assert converted_from(picture) == "a test's RGB"


def test_a_profile_of_srgb_changes_no_pixel() -> None:

    tagged = encode(
        swatches(COLOURS), "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    picture = open_picture(tagged)
    assert np.array_equal(centres(picture), COLOURS)
    assert not picture.info


@pytest.mark.parametrize(
    "profile", [b"no profile", rgb_profile(P3, 2.2)[:200], grey_profile(2.2), cmyk_profile(lambda *_: (50, 0, 0))]
)
def test_a_profile_that_does_not_fit_counts_as_none(profile: bytes) -> None:
    assert np.array_equal(centres(open_picture(encode(swatches(COLOURS), "PNG", icc_profile=profile))), COLOURS)


def test_grey_by_its_own_curve() -> None:
    levels = np.array([[0, 32, 64, 128, 200, 220, 240, 255]], np.uint8).repeat(16, 0)
    got = np.asarray(open_picture(encode(Image.fromarray(levels), "PNG", icc_profile=grey_profile(1.0))))[0, :, 0]
    light = levels[0] / 255
    want = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert np.abs(got - want).max() <= 1


def test_cmyk_by_its_table() -> None:
    lab = (50.0, 60.0, 40.0)
    corners = {(0, 0, 0, 0): (100, 0, 0), (0, 1, 1, 0): lab, (1, 1, 1, 1): (0, 0, 0)}
    profile = cmyk_profile(lambda *inks: corners.get(inks, (0, 0, 0) if inks[3] else (50, 0, 0)))
    picture = open_picture(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF", icc_profile=profile))
    # CIE 15: L, a, b to XYZ under D50; then to linear sRGB by the inverse of its primaries.
    cube = np.array([(lab[0] + 16) / 116 + lab[1] / 500, (lab[0] + 16) / 116, (lab[0] + 16) / 116 - lab[2] / 200])
    linear = np.linalg.inv(to_xyz_d50(SRGB)) @ (cube**3 * D50)
    want = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clip(0) ** (1 / 2.4) - 0.055) * 255
    assert np.abs(np.asarray(picture)[0, 0] - want).max() <= 2


def test_alpha_is_laid_on_white_after_the_conversion() -> None:
    stored = swatches(stored_in(P3, 2.2)).convert("RGBA")
    stored.putalpha(Image.new("L", stored.size, 128))
    got = centres(open_picture(encode(stored, "PNG", icc_profile=rgb_profile(P3, 2.2))))
    assert np.abs(got - (COLOURS * (128 / 255) + 255 * (127 / 255))).max() <= 3


def test_cicp_agrees_with_the_profile_of_the_same_space() -> None:
    code = swatches(stored_in(P3, 2.2))
    by_profile = centres(open_picture(encode(code, "PNG", icc_profile=rgb_profile(P3, 2.2))))
    by_number = centres(open_picture(png(code, cICP=bytes([12, 4, 0, 1]))))
    assert np.abs(by_profile - by_number).max() <= 1
    with_both = png(code, cICP=bytes([1, 13, 0, 1]), gAMA=struct.pack(">I", 100_000))
    assert np.array_equal(centres(open_picture(with_both)), np.asarray(code)[16, 16::32])


@pytest.mark.parametrize("transfer", [16, 18])
def test_white_at_203_nits_is_white(transfer: int) -> None:
    """Code values of diffuse white by ITU-R BT.2408: 58% PQ, 75% HLG."""
    level = round(255 * (0.58 if transfer == 16 else 0.75))
    grey = open_picture(png(swatches(np.full((3, 3), level, np.uint8)), cICP=bytes([9, transfer, 0, 1])))
    assert centres(grey).min() >= 247
    bright = open_picture(png(swatches(np.full((3, 3), 255, np.uint8)), cICP=bytes([9, transfer, 0, 1])))
    assert centres(bright).min() == 255


def test_gamma_and_chromaticities_of_a_png() -> None:
    linear = swatches(stored_in(SRGB, 1.0))
    assert np.abs(centres(open_picture(png(linear, gAMA=struct.pack(">I", 100_000)))) - COLOURS).max() <= 14
    numbers = (*P3[6:], *P3[:6])
    chrm = struct.pack(">8I", *(round(one * 100_000) for one in numbers))
    p3 = swatches(stored_in(P3, 2.2))
    assert np.abs(centres(open_picture(png(p3, gAMA=struct.pack(">I", 45_455), cHRM=chrm))) - COLOURS).max() <= 8
    plain = png(swatches(COLOURS), gAMA=struct.pack(">I", 45_455))
    assert np.array_equal(centres(open_picture(plain)), COLOURS)
    assert np.array_equal(
        centres(open_picture(png(linear, sRGB=b"\0", gAMA=struct.pack(">I", 100_000)))), np.asarray(linear)[16, 16::32]
    )


def exif_of_an_adobe_rgb_photograph() -> bytes:
    """Exif's interoperability directory lies in its own directory, as cameras write it."""

    def directory(*entries: bytes) -> bytes:
        return struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)

    first = directory(struct.pack("<HHII", 0x8769, 4, 1, 26))
    second = directory(struct.pack("<HHIHH", 0xA001, 3, 1, 0xFFFF, 0), struct.pack("<HHII", 0xA005, 4, 1, 56))
    third = directory(struct.pack("<HHI4s", 1, 2, 4, b"R03\0"))
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + third


def test_adobe_rgb_as_cameras_mark_it() -> None:
    stored = swatches(stored_in(ADOBE, 563 / 256))
    exif = exif_of_an_adobe_rgb_photograph()
    picture = open_picture(encode(stored, "JPEG", quality=100, subsampling=0, exif=exif))
    assert np.abs(centres(picture) - COLOURS).max() <= 6
    assert converted_from(picture) == "Adobe RGB (Exif)"


def test_what_was_converted_goes_with_the_fitted_png() -> None:
    tagged = encode(swatches(stored_in(P3, 2.2)), "PNG", icc_profile=rgb_profile(P3, 2.2, "Display P3"))
    for mode in ("crop", "fit", "stretch"):
        fitted = fit_picture(open_picture(tagged), 32, 48, mode)  # type: ignore[arg-type]
        again = open_picture(to_png(fitted))
        assert converted_from(again) == "Display P3"
        assert np.array_equal(np.asarray(again), np.asarray(fitted))


def test_a_phones_heic_is_read_turned_and_converted() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    stored = swatches(stored_in(P3, 2.2))
    file = pillow_heif.from_pillow(stored)
    file.info["icc_profile"] = rgb_profile(P3, 2.2, "Display P3")
    buffer = io.BytesIO()
    file.save(buffer, quality=-1, chroma=444)
    picture = open_picture(buffer.getvalue())
    assert np.abs(centres(picture) - COLOURS).max() <= 6
    assert converted_from(picture) == "Display P3"


def test_a_heic_without_its_reader_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    with pytest.raises(UnreadableImage, match=r"\[heic\]"):
        open_picture(b"\0\0\0\x18ftypheic" + bytes(200))

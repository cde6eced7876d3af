"""Any photo becomes RGB pixels; anything else is an error that names the picture."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from model.errors import ImageTooLarge, InvalidRequest, UnreadableImage
from model.media.image import ImageLimits, fit_picture, open_picture, to_png


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 64)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(format: str) -> None:
    picture = open_picture(encode(gradient(), format))
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), np.asarray(gradient()))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(format: str) -> None:
    picture = open_picture(encode(gradient(), format, quality=95))
    assert np.abs(np.asarray(picture, float) - np.asarray(gradient(), float)).mean() < 4


def test_greyscale_palette_and_still_gif() -> None:
    grey = gradient().convert("L")
    for data in (encode(grey, "PNG"), encode(grey, "GIF"), encode(grey.convert("P"), "PNG")):
        got = np.asarray(open_picture(data))
        assert got.shape == (32, 48, 3)
        assert np.array_equal(got[..., 0], np.asarray(grey))
        assert np.array_equal(got[..., 0], got[..., 2])
    bilevel = np.asarray(open_picture(encode(gradient().convert("1"), "PNG")))
    assert set(np.unique(bilevel)) == {0, 255}


def test_cmyk_has_the_colours_it_means() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for data in (encode(cmyk, "JPEG", quality=95), encode(cmyk, "TIFF")):
        red, green, blue = np.asarray(open_picture(data)).reshape(-1, 3).mean(0)
        assert red > 200 and green < 40 and blue < 40


def test_sixteen_bits_keep_the_upper_eight() -> None:
    deep = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    for format in ("PNG", "TIFF"):
        got = np.asarray(open_picture(encode(Image.fromarray(deep), format)))
        assert np.array_equal(got[..., 1], deep >> 8)


def test_float_pixels_are_refused() -> None:
    data = encode(Image.fromarray(np.ones((16, 16), np.float32)), "TIFF")
    with pytest.raises(UnreadableImage, match="8 or 16 bits"):
        open_picture(data)


def test_alpha_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    rgba.paste((0, 0, 100, 255), (0, 0, 8, 16))
    got = np.asarray(open_picture(encode(rgba, "PNG")))
    assert tuple(got[0, 0]) == (0, 0, 100)
    assert tuple(got[0, 12]) == (255, 255, 255)
    half = np.asarray(open_picture(encode(Image.new("LA", (16, 16), (0, 128)), "PNG")))
    assert abs(int(half[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_applies_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient(), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as stored:
        upright = ImageOps.exif_transpose(stored)
    got = open_picture(data)
    assert np.array_equal(np.asarray(got), np.asarray(upright))
    assert got.size == ((32, 48) if orientation >= 5 else (48, 32))


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    assert open_picture(encode(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).size == (48, 32)


def test_metadata_is_gone() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    exif[0x0112] = 6
    picture = open_picture(encode(gradient(), "JPEG", exif=exif, comment=b"a secret place", dpi=(300, 300)))
    assert not picture.info and not dict(picture.getexif())
    png = to_png(picture)
    assert b"secret" not in png and b"eXIf" not in png and b"pHYs" not in png


def test_phone_multi_picture_jpeg_is_its_first_picture() -> None:
    data = encode(gradient(), "MPO", save_all=True, append_images=[Image.new("RGB", (48, 32))])
    with Image.open(io.BytesIO(data)) as stored:
        assert getattr(stored, "n_frames", 1) == 2
    assert np.asarray(open_picture(data)).std() > 20


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_are_refused(format: str) -> None:
    other = Image.new("RGB", (48, 32), "red")
    data = encode(gradient(), format, save_all=True, append_images=[other, gradient().rotate(90)])
    with pytest.raises(UnreadableImage, match="several frames") as caught:
        open_picture(data)
    assert caught.value.param == "image"
    assert caught.value.code == "animated_image"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"hello, world, this is text", "format we accept"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
        (b"GIF89a", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"%PDF-1.7 something", "format we accept"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(UnreadableImage, match=says) as caught:
        open_picture(data)
    assert caught.value.param == "image"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_half_a_picture_is_refused(format: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = encode(noise, format)
    with pytest.raises(UnreadableImage):
        open_picture(data[: int(len(data) * share)])


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (20_000, 20_000), (2_000_000, 33), (8_063, 8_063)])
def test_a_bomb_is_refused_by_its_header_alone(width: int, height: int) -> None:
    tracemalloc.start()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(ImageTooLarge, match="65000000") as caught:
            open_picture(png_header(width, height))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not heard
    assert peak < 2_000_000
    assert caught.value.param == "image"


def test_limits_are_the_callers() -> None:
    data = encode(gradient(), "PNG")
    with pytest.raises(ImageTooLarge, match="bytes"):
        open_picture(data, limits=ImageLimits(max_bytes=len(data) - 1))
    with pytest.raises(ImageTooLarge, match="pixels"):
        open_picture(data, limits=ImageLimits(max_pixels=48 * 32 - 1))
    assert open_picture(data, limits=ImageLimits(max_bytes=len(data), max_pixels=48 * 32, min_side=32)).size == (48, 32)


@pytest.mark.parametrize(("width", "height"), [(1, 100), (100, 1), (7, 8), (1, 1)])
def test_a_sliver_is_refused_with_the_limit(width: int, height: int) -> None:
    with pytest.raises(UnreadableImage, match="at least 8") as caught:
        open_picture(encode(Image.new("RGB", (width, height)), "PNG"))
    assert (caught.value.param, caught.value.code) == ("image", "image_too_small")


@settings(max_examples=150, deadline=None)
@given(format=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]), at=st.data())
def test_flipped_bytes_give_a_picture_or_our_error(format: str, at: st.DataObject) -> None:
    data = bytearray(encode(gradient(24, 16), format))
    for _ in range(at.draw(st.integers(1, 4))):
        data[at.draw(st.integers(0, len(data) - 1))] = at.draw(st.integers(0, 255))
    try:
        picture = open_picture(bytes(data), limits=ImageLimits(max_pixels=1_000_000))
    except InvalidRequest as error:
        param, mode = error.param, "RGB"
    else:
        param, mode = "image", picture.mode
    assert (param, mode) == ("image", "RGB")


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(8, 400),
    height=st.integers(8, 400),
    out_width=st.integers(1, 64),
    out_height=st.integers(1, 64),
    mode=st.sampled_from(["crop", "fit", "stretch"]),
)
def test_fit_always_gives_the_size_asked(width: int, height: int, out_width: int, out_height: int, mode: str) -> None:
    fitted = fit_picture(Image.new("RGB", (width, height), "red"), out_height, out_width, mode)  # type: ignore[arg-type]
    assert fitted.size == (out_width, out_height)
    if mode != "fit":
        assert np.all(np.asarray(fitted) == (255, 0, 0))


def test_crop_cuts_the_centre_and_stretch_does_not() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    cropped = np.asarray(fit_picture(wide, 50, 50, "crop"))
    assert tuple(cropped[25, 4]) == tuple(cropped[25, 45]) == (0, 0, 255)
    stretched = np.asarray(fit_picture(wide, 50, 60, "stretch"))
    assert tuple(stretched[25, 4]) == (255, 0, 0) and tuple(stretched[25, 30]) == (0, 0, 255)


def test_crop_is_lanczos_of_the_cut_centre() -> None:
    tall = gradient(64, 128)
    direct = tall.crop((0, 32, 64, 96)).resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=None)
    assert np.abs(np.asarray(fit_picture(tall, 32, 32, "crop"), int) - np.asarray(direct, int)).max() <= 2


def test_fit_keeps_all_and_bars_are_black() -> None:
    framed = np.asarray(fit_picture(Image.new("RGB", (300, 100), "white"), 60, 60, "fit"))
    assert np.all(framed[:20] == 0) and np.all(framed[40:] == 0) and np.all(framed[20:40] == 255)


def test_a_very_long_picture_costs_no_more() -> None:
    long = Image.new("RGB", (8, 500_000), "green")
    for mode in ("crop", "fit", "stretch"):
        assert fit_picture(long, 128, 224, mode).size == (224, 128)


def test_png_round_trip() -> None:
    assert np.array_equal(np.asarray(open_picture(to_png(gradient()))), np.asarray(gradient()))


def test_imports_no_torch() -> None:
    code = "import sys, model.media.image; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

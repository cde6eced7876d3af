"""Every way to hand over a picture sends the same kind of upload."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from stillmotion._image import content_type, read_image

from tests.unit.client.support import PNG


def test_path_bytes_and_file_send_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        uploads = [read_image(source) for source in (path, str(path), PNG, bytearray(PNG), memoryview(PNG), file)]
    assert {upload.data for upload in uploads} == {PNG}
    assert {upload.content_type for upload in uploads} == {"image/png"}
    assert [upload.name for upload in uploads] == ["still.png"] * 2 + ["image"] * 3 + ["still.png"]
    assert read_image(io.BytesIO(PNG)).data == PNG


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F"])
def test_a_pillow_image_of_any_mode_goes_as_png(mode: str) -> None:
    upload = read_image(Image.new(mode, (6, 4)))
    with Image.open(io.BytesIO(upload.data)) as picture:
        assert (picture.format, picture.size) == ("PNG", (6, 4))


def test_a_rotated_photograph_arrives_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    photograph = io.BytesIO()
    Image.new("RGB", (6, 4)).save(photograph, "JPEG", exif=exif)
    with Image.open(photograph) as picture, Image.open(io.BytesIO(read_image(picture).data)) as sent:
        assert sent.size == (4, 6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_the_type_is_what_the_bytes_are(kind: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, kind)
    assert content_type(out.getvalue()) == f"image/{kind.lower()}"


def test_what_is_no_picture_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(TypeError, match="int"):
        read_image(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        read_image(b"")
    with pytest.raises(ValueError, match="binary"):
        read_image(io.StringIO("text"))  # type: ignore[arg-type]
    assert content_type(b"hello") == "application/octet-stream"

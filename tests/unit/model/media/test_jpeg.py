"""JPEGs that lack only their end marker are taken, cut ones refused; large ones are decoded small enough."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.errors import ImageTooLarge, UnreadableImage
from model.media.image import ImageLimits, open_picture

CASES = Path("tests") / "data" / "pictures"


def photograph(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width] / 16
    noise = np.random.default_rng(5).normal(0, 12, (height, width))
    pixels = np.stack([128 + 100 * np.sin(x) + noise, 128 + 90 * np.cos(y), 128 + 80 * np.sin(x + y)], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "optimized 4:4:4": {"optimize": True, "subsampling": 0},
    "grey": {},
}


def stored(kind: str) -> bytes:
    image = photograph(120, 72)
    return jpeg(image.convert("L") if kind == "grey" else image, quality=80, **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_end_marker_it_is_taken(kind: str) -> None:
    data = stored(kind)
    assert data.endswith(b"\xff\xd9")
    whole = np.asarray(open_picture(data))
    for cut in (data[:-2], data[:-1], data[:-2] + b"\xff"):
        assert np.array_equal(np.asarray(open_picture(cut)), whole)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(share=st.floats(0.3, 0.99))
def test_cut_short_it_is_refused(kind: str, share: float) -> None:
    data = stored(kind)
    with pytest.raises(UnreadableImage, match=r"cut short|broken header"):
        open_picture(data[: int(share * (len(data) - 8))])


def test_cut_between_two_scans_it_is_refused() -> None:
    data = stored("progressive")
    scans = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 4
    for at in scans[1:]:
        with pytest.raises(UnreadableImage, match="cut short"):
            open_picture(data[:at])


def test_the_reported_files(root: Path) -> None:
    assert open_picture((root / CASES / "noeoi.jpg").read_bytes()).size == (224, 128)
    with pytest.raises(UnreadableImage, match="cut short"):
        open_picture((root / CASES / "progressive_cut.jpg").read_bytes())


def test_a_jpeg_above_the_limit_is_decoded_at_a_half() -> None:
    image = photograph(640, 480)
    limits = ImageLimits(max_pixels=640 * 480 // 3)
    small = open_picture(jpeg(image, quality=95), limits=limits)
    assert small.size == (320, 240)
    by_pillow = np.asarray(image.reduce(2), float)
    assert np.abs(np.asarray(small, float) - by_pillow).mean() < 4
    with pytest.raises(ImageTooLarge, match="not progressive"):
        open_picture(jpeg(image, progressive=True), limits=ImageLimits(max_pixels=640 * 480 // 3))
    with pytest.raises(ImageTooLarge, match="shrink it"):
        open_picture(jpeg(image), limits=ImageLimits(max_pixels=640 * 480 // 6))


PEAK = """
import io, resource, sys
from pathlib import Path
from model.media.image import fit_picture, open_picture, to_png
open_picture(Path(sys.argv[2]).read_bytes())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = fit_picture(open_picture(Path(sys.argv[1]).read_bytes()), 576, 1024, "crop")
print(picture.size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit_mib"), [("200 megapixels", 350), ("50 megapixels with alpha", 450)])
def test_what_a_phone_takes_is_decoded_within_bounds(name: str, limit_mib: int, tmp_path: Path, root: Path) -> None:
    """The decoded pixels and their RGB copy: 150 MB each at 50 megapixels, 200 with alpha."""
    large, small = tmp_path / "large", tmp_path / "small.png"
    Image.new("RGB", (64, 64)).save(small)
    if name == "200 megapixels":
        Image.new("RGB", (16320, 12240), (200, 120, 40)).save(large, "JPEG", quality=50)
    else:
        Image.new("RGBA", (8160, 6120), (200, 120, 40, 128)).save(large, "PNG", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(large), str(small)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.rsplit(" ", 1)[1]) * (1 if sys.platform == "darwin" else 1024)
    assert peak <= limit_mib * 2**20, f"{peak / 2**20:.0f} MiB"

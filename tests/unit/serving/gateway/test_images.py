"""What is kept of a picture: the sampler's own view of it, in a PNG that others read the same."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.media.image import fit_picture, open_picture
from model.params import ImageToVideoParams, ResizeMode
from serving.gateway.images import fitted_png, plain_png


def params(width: int, height: int, mode: ResizeMode) -> ImageToVideoParams:
    return ImageToVideoParams(
        num_frames=5,
        height=height,
        width=width,
        seed=1,
        fps=7,
        motion_bucket_id=127,
        max_guidance_scale=3.0,
        num_inference_steps=2,
        solver="euler",
        schedule="karras",
        decode_chunk_size=8,
        noise_aug_strength=0.02,
        resize_mode=mode,
        min_guidance_scale=1.0,
    )


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_plain_png_reads_back_to_the_same_pixels(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    with Image.open(io.BytesIO(plain_png(Image.fromarray(pixels)))) as read:
        read.load()
        assert (read.format, read.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(read), pixels)


@pytest.mark.parametrize("width", [21844, 21845, 43690])
def test_so_does_one_of_exactly_a_stored_block_or_a_byte_more(width: int) -> None:
    pixels = np.random.default_rng(width).integers(0, 256, (1, width, 3), np.uint8)
    with Image.open(io.BytesIO(plain_png(Image.fromarray(pixels)))) as read:
        np.testing.assert_array_equal(np.asarray(read), pixels)


@pytest.mark.parametrize("mode", ["crop", "fit", "stretch"])
@pytest.mark.parametrize("size", [(96, 64), (50, 300), (1000, 20), (97, 65)])
def test_fitting_what_is_kept_again_changes_nothing(mode: ResizeMode, size: tuple[int, int]) -> None:
    """So the engine makes the same video of it as of the picture that was sent."""
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
    whole = Image.fromarray(pixels)
    stored = open_picture(fitted_png(whole, params(96, 64, mode)))
    assert stored.size == (96, 64)
    expected = np.asarray(fit_picture(whole, 64, 96, mode))
    np.testing.assert_array_equal(np.asarray(fit_picture(stored, 64, 96, mode)), expected)

"""Conditioning against diffusers' own preparation of the same picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.checkpoint import Checkpoint, load
from model.conditioning import clip_input, condition, picture_to_pixels, resize_antialiased
from model.encoders import CLIP_NORMALISATION, clip_image_processor
from model.errors import InvalidRequest
from model.params import ImageToVideoParams
from model.presets import preset
from model.tasks import task
from model.testing import build_random


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = tmp_path_factory.mktemp("tiny")
    build_random(folder, preset("tiny"), task("image-to-video"), seed=3)
    return load(folder)


@pytest.fixture
def params(checkpoint: Checkpoint) -> ImageToVideoParams:
    return checkpoint.entry.resolve({"fps": 9, "motion_bucket_id": 41, "noise_aug_strength": 0.3}, seed=1)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 700), st.integers(8, 700))
def test_the_resize_is_that_of_the_published_pipeline(height: int, width: int) -> None:
    pixels = picture_to_pixels(picture(width, height))[None]
    theirs = _resize_with_antialiasing(pixels, (224, 224))
    assert torch.allclose(resize_antialiased(pixels, 224, 224), theirs, atol=1e-5)


def test_clip_sees_what_its_feature_extractor_would_give() -> None:
    still = picture(224, 224)
    extractor = clip_image_processor(*CLIP_NORMALISATION)
    theirs = extractor(still, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    ours = clip_input(picture_to_pixels(still)[None], extractor.image_mean, extractor.image_std)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_no_picture_goes_through_a_processor_of_the_library_s(
    checkpoint: Checkpoint, params: ImageToVideoParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which one transformers has depends on whether torchvision is installed, and they differ in rounding."""
    if hasattr(transformers, "CLIPImageProcessorPil"):  # then the other one stands for torchvision's
        monkeypatch.setattr(transformers, "CLIPImageProcessor", dict)
    processor = type(clip_image_processor(*CLIP_NORMALISATION))
    assert processor.__name__ in ("CLIPImageProcessorPil", "CLIPImageProcessor")
    still, noise = picture(64, 64), torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        expected = condition(checkpoint, params, [still], noise)
        monkeypatch.setattr(processor, "__call__", lambda *_, **__: pytest.fail("a processor was called"))
        assert torch.equal(condition(checkpoint, params, [still], noise).context, expected.context)


def test_the_latent_is_the_unscaled_mode_of_the_noisy_picture_on_every_frame(
    checkpoint: Checkpoint, params: ImageToVideoParams
) -> None:
    still, noise = picture(64, 64), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        told = condition(checkpoint, params, [still], noise)
        noisy = picture_to_pixels(still)[None].contiguous() + 0.3 * noise
        mode = checkpoint.vae.encode(noisy).latent_dist.mode()
    assert told.concat.shape == (6, 4, 8, 8)
    assert all(torch.equal(frame, mode[0]) for frame in told.concat)


def test_the_embedding_is_of_the_clean_picture(checkpoint: Checkpoint, params: ImageToVideoParams) -> None:
    still, noise = picture(64, 64), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        noisy = condition(checkpoint, params, [still], noise)
        clean = condition(checkpoint, replace(params, noise_aug_strength=0.0), [still], noise)
        other = condition(checkpoint, params, [picture(64, 64, seed=9)], noise)
    assert torch.equal(noisy.context, clean.context)
    assert not torch.allclose(noisy.context, other.context)
    assert not torch.allclose(noisy.concat, clean.concat)


def test_the_vector_holds_fps_less_one_the_bucket_and_the_noise(
    checkpoint: Checkpoint, params: ImageToVideoParams
) -> None:
    with torch.no_grad():
        told = condition(checkpoint, params, [picture(64, 64)], torch.zeros(1, 3, 64, 64))
    assert told.vector.tolist() == pytest.approx([8.0, 41.0, 0.3])


def test_a_picture_of_another_size_is_refused(checkpoint: Checkpoint, params: ImageToVideoParams) -> None:
    with pytest.raises(InvalidRequest, match="72x64") as caught:
        condition(checkpoint, params, [picture(72, 64)], torch.zeros(1, 3, 64, 64))
    assert caught.value.param == "image"

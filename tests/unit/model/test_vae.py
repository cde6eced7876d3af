"""Decoding against diffusers' pipeline's own, chunk by chunk."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, StableVideoDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor

from model.presets import preset
from model.shapes import even_chunks
from model.vae import build_vae, decode, to_uint8


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLTemporalDecoder:
    torch.manual_seed(0)
    return build_vae(preset("tiny")).eval()


def test_eight_bit_frames_are_those_of_diffusers_to_the_last_bit() -> None:
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels[0, 0, 0, :3] = torch.tensor([-1.0, 1.0, 1 / 255])
    theirs = VaeImageProcessor().postprocess(pixels, output_type="pil")
    assert np.array_equal(to_uint8(pixels), np.stack([np.asarray(frame) for frame in theirs]))


@pytest.mark.parametrize(("frames", "largest"), [(5, 2), (6, 6), (7, 3)])
def test_chunks_are_decoded_apart_and_in_order(vae: AutoencoderKLTemporalDecoder, frames: int, largest: int) -> None:
    latents = torch.randn(frames, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    told: list[int] = []
    found = decode(vae, latents, largest, told.append)
    plan = even_chunks(frames, largest)
    with torch.no_grad():
        parts = [vae.decode(part / 0.5, num_frames=len(part)).sample for part in latents.split(list(plan))]
    assert np.array_equal(found, to_uint8(torch.cat(parts)))
    assert told == list(np.cumsum(plan))
    assert found.shape == (frames, 32, 32, 3)


@pytest.mark.parametrize(("frames", "largest"), [(14, 8), (25, 8), (25, 14), (14, 25)])
def test_the_plan_of_diffusers_is_its_pipelines(vae: AutoencoderKLTemporalDecoder, frames: int, largest: int) -> None:
    latents = torch.randn(frames, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    stub = SimpleNamespace(vae=vae)
    with torch.no_grad():
        theirs = StableVideoDiffusionPipeline.decode_latents(stub, latents[None], frames, decode_chunk_size=largest)
    expected = to_uint8(theirs[0].permute(1, 0, 2, 3).float())
    assert np.array_equal(decode(vae, latents, largest, plan="diffusers"), expected)
    if frames % largest and largest < frames:
        assert not np.array_equal(decode(vae, latents, largest), expected), "the borders of chunks are seen"

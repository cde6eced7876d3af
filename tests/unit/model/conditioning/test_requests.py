"""What each task's requests become, against transformers' and diffusers' own pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from model.checkpoint import Checkpoint, load
from model.conditioning import condition, image_context, picture_to_pixels
from model.denoiser import Conditioning
from model.encoders import ImagePairEncoder, TextEncoder
from model.errors import InvalidRequest
from model.presets import preset
from model.sampling.sampler import draw_noise
from model.tasks import TASKS, task
from model.testing import build_random

FRAMES = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("four")
    for seed, spec in enumerate(TASKS.values()):
        build_random(folder / spec.name, preset("tiny"), spec, seed=seed, num_frames=FRAMES)
    return {name: folder / name for name in TASKS}


@pytest.fixture(scope="module")
def checkpoints(folders: dict[str, Path]) -> dict[str, Checkpoint]:
    return {name: load(folder) for name, folder in folders.items()}


def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def told(checkpoint: Checkpoint, pictures: list[Image.Image], **asked: object) -> Conditioning:
    params = checkpoint.entry.resolve(asked, seed=1)
    noise = draw_noise(1, checkpoint.entry.task, params.shape, params.shape.latent(4))
    with torch.no_grad():
        return condition(checkpoint, params, pictures, noise.augmentation)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_shapes_are_those_of_the_task(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    spec, checkpoint = task(name), checkpoints[name]
    asked = {} if spec.pictures else {"prompt": "a ball"}
    got = told(checkpoint, [picture(seed) for seed in range(len(spec.pictures))], **asked)
    assert got.context.shape == (spec.context_tokens, 32)
    assert got.concat.shape == (FRAMES, spec.concat_channels(4), 8, 8)
    assert got.vector.shape == (len(spec.vector),)


def test_a_prompt_is_what_transformers_reads_of_it(
    folders: dict[str, Path], checkpoints: dict[str, Checkpoint]
) -> None:
    folder = folders["text-to-video"]
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    got = told(checkpoints["text-to-video"], [], prompt="a red ball, rolling", fps=9, motion_bucket_id=40)
    with torch.no_grad():
        ids = tokenizer("a red ball, rolling", padding="max_length", return_tensors="pt").input_ids
        theirs = encoder(ids)[0][0]
    assert ids.shape == (1, 77)
    assert torch.allclose(got.context, theirs, atol=1e-6)
    assert got.vector.tolist() == [8.0, 40.0]
    other = told(checkpoints["text-to-video"], [], prompt="a blue ball, rolling")
    assert not torch.allclose(got.context, other.context)


def test_a_prompt_beyond_the_encoder_is_refused_not_cut(checkpoints: dict[str, Checkpoint]) -> None:
    fits = "a" * 75  # a token a byte, and two that begin and end it
    assert told(checkpoints["text-to-video"], [], prompt=fits).context.shape == (77, 32)
    with pytest.raises(InvalidRequest) as caught:
        told(checkpoints["text-to-video"], [], prompt=fits + "a")
    assert (caught.value.code, caught.value.param) == ("prompt_too_long", "prompt")


def test_two_stills_are_the_ends_scaled_and_noisy_in_latent_space(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint, stills = checkpoints["frame-interpolation"], [picture(1), picture(2)]
    conditioners = checkpoint.conditioners
    assert isinstance(conditioners, ImagePairEncoder)
    clean = told(checkpoint, stills, noise_aug_strength=0.0)
    noisy = told(checkpoint, stills, noise_aug_strength=0.5)
    pixels = torch.stack([picture_to_pixels(still) for still in stills])
    with torch.no_grad():
        modes = checkpoint.vae.encode(pixels).latent_dist.mode() * checkpoint.scaling_factor
        seen = image_context(conditioners, pixels)
    assert torch.allclose(clean.concat[[0, -1], :4], modes, atol=1e-5)
    assert torch.equal(clean.concat[1:-1, :4], conditioners.mask[None, :, None, None].expand(3, 4, 8, 8))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(noisy.concat[[0, -1], :4], modes + 0.5 * noise, atol=1e-5)
    assert torch.equal(noisy.concat[:, 4], clean.concat[:, 4])
    assert torch.equal(noisy.context, seen)
    assert noisy.vector.tolist() == pytest.approx([6.0, 127.0, 0.5])


def test_the_elevation_is_told_beside_what_image_to_video_is_told(checkpoints: dict[str, Checkpoint]) -> None:
    got = told(checkpoints["multi-view"], [picture()], elevation=-12.5, noise_aug_strength=0.25)
    assert got.vector.tolist() == [6.0, 127.0, 0.25, -12.5]
    assert all(torch.equal(frame, got.concat[0]) for frame in got.concat)


def test_too_many_or_too_few_pictures_are_refused(checkpoints: dict[str, Checkpoint]) -> None:
    with pytest.raises(InvalidRequest, match="2 pictures, not 1"):
        told(checkpoints["frame-interpolation"], [picture()])
    with pytest.raises(InvalidRequest, match="0 pictures, not 1"):
        told(checkpoints["text-to-video"], [picture()], prompt="a ball")


def test_the_second_picture_of_another_size_is_named(checkpoints: dict[str, Checkpoint]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        told(checkpoints["frame-interpolation"], [picture(), picture(size=(72, 64))])
    assert caught.value.param == "last_image"


def test_settings_of_another_task_are_refused(checkpoints: dict[str, Checkpoint]) -> None:
    params = checkpoints["multi-view"].entry.resolve({}, seed=1)
    with pytest.raises(InvalidRequest, match="serves image-to-video, not MultiViewParams"):
        condition(checkpoints["image-to-video"], params, [picture()], torch.zeros(1, 3, 64, 64))


def test_text_towers_keep_their_tokenizer(checkpoints: dict[str, Checkpoint]) -> None:
    tower = checkpoints["text-to-video"].conditioners
    assert isinstance(tower, TextEncoder)
    assert tower.tokenizer.model_max_length == 77

"""A seed's noise: the order of drawing that diffusers uses, and nothing shared between requests."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor

from model.sampling.prepare import draw_noise
from model.shapes import VideoShape
from model.tasks import task

SHAPE = VideoShape(5, 32, 40)
STILL = task("image-to-video")


def test_draws_the_picture_first_then_the_latents_like_diffusers() -> None:
    generator = torch.Generator().manual_seed(11)
    picture = randn_tensor((1, 3, 32, 40), generator=generator, dtype=torch.float32)
    latents = randn_tensor((1, 5, 4, 4, 5), generator=generator, dtype=torch.float32)
    noise = draw_noise(11, STILL, SHAPE, SHAPE.latent(4))
    assert torch.equal(noise.augmentation, picture)
    assert torch.equal(noise.latents, latents[0])


def test_depends_on_the_seed_alone() -> None:
    first = draw_noise(2**63 - 1, STILL, SHAPE, SHAPE.latent(16))
    torch.randn(100)
    draw_noise(3, STILL, SHAPE, SHAPE.latent(16))
    again = draw_noise(2**63 - 1, STILL, SHAPE, SHAPE.latent(16))
    other = draw_noise(2**63 - 2, STILL, SHAPE, SHAPE.latent(16))
    assert torch.equal(first.latents, again.latents)
    assert not torch.allclose(first.latents, other.latents, atol=0.1)


def test_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draw_noise(5, STILL, SHAPE, SHAPE.latent(4))
    assert torch.equal(before, torch.random.get_rng_state())


def test_two_pictures_get_noise_for_their_latents() -> None:
    noise = draw_noise(5, task("frame-interpolation"), SHAPE, SHAPE.latent(4))
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(noise.augmentation, torch.randn(2, 4, 4, 5, generator=generator))
    assert torch.equal(noise.latents, torch.randn(5, 4, 4, 5, generator=generator))


def test_a_prompt_takes_no_noise_before_the_latents() -> None:
    noise = draw_noise(5, task("text-to-video"), SHAPE, SHAPE.latent(4))
    assert noise.augmentation.numel() == 0
    assert torch.equal(noise.latents, torch.randn(5, 4, 4, 5, generator=torch.Generator().manual_seed(5)))

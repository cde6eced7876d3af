"""A seed's noise is drawn in diffusers' order; rows in one denoiser call do not mix; guidance is left out if idle."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.denoiser import Conditioning, DenoiserInputs
from model.params import SolverName
from model.sampling.row import BatchKey, Row, guidance_scale
from model.sampling.sampler import advance, batch_size, draw_noise, sample
from model.sampling.solvers import karras_sigmas
from model.shapes import LatentShape, VideoShape
from model.tasks import task

LATENT = LatentShape(3, 2, 4, 4)
SHAPE = VideoShape(5, 32, 40)
STILL = task("image-to-video")


@dataclass
class Mixer:
    """A denoiser that uses every input of each place, and records how many places each call had."""

    calls: list[int] = field(default_factory=list)

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        self.calls.append(inputs.batch_size)
        level = inputs.context.mean((1, 2)) + inputs.vector.mean(1) * 0.01 + inputs.timestep
        return torch.tanh(inputs.latents + inputs.concat[:, :, :2] + level[:, None, None, None, None])


def row(seed: int, steps: int, name: SolverName = "euler", low: float = 1.0, high: float = 3.0) -> Row:
    generator = torch.Generator().manual_seed(seed)
    conditioning = Conditioning(
        context=torch.randn(1, 8, generator=generator),
        concat=torch.randn(1, 2, 4, 4, generator=generator).expand(3, -1, -1, -1),
        vector=torch.randn(3, generator=generator),
    )
    return Row.begin(
        BatchKey("mixer", LATENT, "float32"),
        solver=name,
        sigmas=karras_sigmas(steps, 0.002, 80.0),
        noise=torch.randn(LATENT.as_tuple(), generator=generator),
        conditioning=conditioning,
        scale=guidance_scale("linear", low, high, 3),
        seed=seed,
    )


requests = st.lists(
    st.tuples(
        st.integers(0, 99), st.integers(1, 5), st.sampled_from(["euler", "heun", "lcm"]), st.sampled_from([1.0, 2.5])
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(requests)
def test_rows_in_company_equal_their_solo_runs(wanted: list[tuple[int, int, SolverName, float]]) -> None:
    rows = [row(seed, steps, name, 1.0, high) for seed, steps, name, high in wanted]
    solo = [sample(Mixer(), each) for each in rows]
    together = dict(enumerate(rows))
    while pending := [index for index, each in together.items() if not each.done]:
        stepped = advance(Mixer(), [together[index] for index in pending])
        together |= dict(zip(pending, stepped, strict=True))
    for index, alone in enumerate(solo):
        assert (together[index].latents - alone.latents).abs().max() < 1e-5


def test_a_guided_row_takes_two_places_and_an_unguided_one_one() -> None:
    denoiser = Mixer()
    rows = [row(1, 2), row(2, 3, high=1.0), row(3, 4)]
    advance(denoiser, rows)
    assert denoiser.calls == [5]
    assert batch_size(rows) == 5


def test_leaving_the_unconditional_pass_out_at_scale_one_changes_nothing() -> None:
    plain = row(4, 6, low=1.0, high=1.0)
    barely = row(4, 6, low=1.0, high=1.0 + 1e-6)
    assert not plain.guided
    assert barely.guided
    assert (sample(Mixer(), plain).latents - sample(Mixer(), barely).latents).abs().max() < 1e-4


def test_the_unconditional_place_has_zeroed_pictures_and_the_same_vector() -> None:
    nothing, told = row(5, 1).conditions
    assert not nothing.context.any()
    assert not nothing.concat.any()
    assert torch.equal(nothing.vector, told.vector)
    assert told.context.any()


@pytest.mark.parametrize(("name", "calls"), [("euler", 4), ("heun", 7)])
def test_the_plain_loop_tells_every_step_once(name: SolverName, calls: int) -> None:
    told: list[int] = []
    denoiser = Mixer()
    done = sample(denoiser, row(6, 4, name), lambda current: told.append(current.step))
    assert done.done
    assert told == [1, 2, 3, 4]
    assert len(denoiser.calls) == calls


def test_noise_starts_at_the_standard_deviation_the_models_were_trained_with() -> None:
    start = row(7, 5)
    unit = torch.randn(LATENT.as_tuple(), generator=torch.Generator().manual_seed(7))
    assert start.latents.std() == pytest.approx((80.0**2 + 1) ** 0.5, rel=0.3)
    assert unit.shape == start.latents.shape


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

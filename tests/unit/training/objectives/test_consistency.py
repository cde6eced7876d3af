"""Distillation: targets with a known answer, exact on resume, and the levels that are drawn."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.denoiser import DenoiserInputs
from model.errors import InvalidRequest
from model.optimized.rewrites import rewrite_exactly
from model.presets import NoiseRange, preset
from model.sampling.sampler import append_dims, precondition
from model.sampling.solvers import karras_sigmas, lcm_sigmas
from model.tasks import task
from model.unet import build_unet
from training.config import ConsistencyConfig, Distillation
from training.data.latents import LatentClip
from training.distilled_levels import level_weights, teacher_sigmas
from training.objectives.consistency import ConsistencyObjective
from training.objectives.protocol import Batch
from training.overrides import with_overrides
from training.recipes import PUBLISHED, RECIPES
from training.trainer import Trainer

MEAN, SPREAD = 0.7, 0.5
FRAMES = 3


class Clips:
    """Random clips with their conditions, each a function of its generator."""

    def __init__(self) -> None:
        self.clips: list[LatentClip] = []

    def example(self, draw: torch.Generator) -> Batch:
        """One clip of 3 frames of 8 x 8 cells."""
        number = int(torch.randint(0, 50, (), generator=draw))
        own = torch.Generator().manual_seed(number)
        clean, concat = torch.randn(1, FRAMES, 4, 8, 8, generator=own), torch.randn(1, FRAMES, 4, 8, 8, generator=own)
        context, vector = torch.randn(1, 1, 32, generator=own), torch.tensor([[5.0, 100.0, 0.02]])
        return Batch(clean, concat, context, vector, (f"clip-{number}",))


def config(**distil: object) -> ConsistencyConfig:
    recipe = RECIPES["mini-image-to-video-fast"]()
    assert isinstance(recipe, ConsistencyConfig)
    optim = dataclasses.replace(
        recipe.optim, iterations=6, batch=2, lr=1e-3, warmup=2, log_every=1, checkpoint_every=2, method="adamw"
    )
    return dataclasses.replace(
        recipe,
        preset="tiny",
        optim=optim,
        num_frames=FRAMES,
        height=64,
        width=64,
        window_until=0,
        distil=dataclasses.replace(recipe.distil, **distil),  # type: ignore[arg-type]
    )


def objective(settings: ConsistencyConfig) -> ConsistencyObjective:
    def unet() -> nn.Module:
        torch.manual_seed(1)
        network: nn.Module = build_unet(preset("tiny"), task("image-to-video"), num_frames=FRAMES)  # type: ignore[assignment]
        rewrite_exactly(network, context_tokens=1)
        return network

    return ConsistencyObjective(settings, unet(), unet(), Clips())  # type: ignore[arg-type]


class GaussianTeacher:
    """The ideal denoiser of N(mu, s^2), as a network under EDM's preconditioning; with no condition, of N(0, s^2)."""

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        sigma = (4 * inputs.timestep).exp()
        c = precondition(sigma)
        x = inputs.latents / append_dims(c.c_in, inputs.latents)
        mean = append_dims((inputs.concat.flatten(1).abs().sum(1) > 0).float() * MEAN, x)
        variance = append_dims(sigma**2, x)
        denoised = (SPREAD**2 * x + variance * mean) / (SPREAD**2 + variance)
        return (denoised - append_dims(c.c_skip, x) * x) / append_dims(c.c_out, x)


def test_a_solve_to_the_end_lands_where_the_ode_of_a_gaussian_does() -> None:
    made = objective(config(min_guidance=1.0, max_guidance=1.0, substeps=12))
    made.teacher = GaussianTeacher()  # type: ignore[assignment]
    row, noise = Clips().example(torch.Generator().manual_seed(0)), torch.randn(FRAMES, 4, 8, 8)
    points = made.points(row, made.levels[1], noise)
    assert points.sigma.tolist() == list(made.levels[1:4])
    torch.testing.assert_close(points.x[0], row.clean[0] + made.levels[1] * noise)
    for x, sigma, target in zip(points.x, points.sigma, points.target, strict=True):
        exact = MEAN + (x - MEAN) * SPREAD / math.sqrt(SPREAD**2 + float(sigma) ** 2)
        assert (target - exact).abs().max() < 0.03, "one end, from every level that the solve passes"


def test_guidance_is_folded_into_the_target_frame_by_frame() -> None:
    made = objective(config(min_guidance=1.0, max_guidance=3.0, levels=(1,), default_steps=1))
    made.teacher = GaussianTeacher()  # type: ignore[assignment]
    row, sigma = Clips().example(torch.Generator().manual_seed(0)), made.levels[0]
    target = made.points(row, sigma, torch.zeros(FRAMES, 4, 8, 8)).target[0]  # one step: the guided denoised clip
    for frame, scale in enumerate((1.0, 2.0, 3.0)):
        unconditional = SPREAD**2 * row.clean[0, frame] / (SPREAD**2 + sigma**2)
        shift = scale * sigma**2 * MEAN / (SPREAD**2 + sigma**2)
        torch.testing.assert_close(target[frame], unconditional + shift, atol=1e-4, rtol=0)


def test_a_consistency_target_is_the_student_s_answer_at_the_next_level_and_the_sample_itself_at_0() -> None:
    made = objective(config(solve_to_end=False, min_guidance=1.0, max_guidance=1.0))
    made.teacher = GaussianTeacher()  # type: ignore[assignment]
    row, noise = Clips().example(torch.Generator().manual_seed(0)), torch.randn(FRAMES, 4, 8, 8)
    made.network.requires_grad_(True)
    high, low = made.levels[1], made.levels[2]
    x = row.clean[0] + high * noise
    denoised = (SPREAD**2 * x + high**2 * MEAN) / (SPREAD**2 + high**2)
    stepped = denoised + low / high * (x - denoised)
    points = made.points(row, high, noise)
    assert points.x.shape[0] == 1 and not points.target.requires_grad
    torch.testing.assert_close(points.target[0], made._answer(row, stepped, low), atol=2e-4, rtol=1e-4)
    last = made.points(row, made.levels[3], noise)
    x = row.clean[0] + made.levels[3] * noise
    ends = (SPREAD**2 * x + made.levels[3] ** 2 * MEAN) / (SPREAD**2 + made.levels[3] ** 2)
    torch.testing.assert_close(last.target[0], ends, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_it_learns_what_the_teacher_s_guided_solve_ends_at() -> None:
    made = objective(config(levels=(1,), default_steps=1))
    optimizer = torch.optim.AdamW(made.network.parameters(), 2e-3)
    losses = []
    for _ in range(25):
        made.enter(0)
        losses.append(made.backward(0)["loss"])
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("solve_to_end", [True, False])
def test_a_resumed_run_is_the_run(tmp_path: Path, solve_to_end: bool) -> None:
    settings = config(solve_to_end=solve_to_end, levels=(2, 4))
    settings = dataclasses.replace(settings, optim=dataclasses.replace(settings.optim, iterations=4, batch=1))
    whole = Trainer(objective(settings), settings, tmp_path / "whole")
    whole.run()
    begun = Trainer(objective(settings), settings, tmp_path / "parts")
    begun.run(until=2)
    resumed = Trainer(objective(settings), settings, tmp_path / "parts")
    resumed.resume()
    assert resumed.step == 2
    resumed.run()
    for name, value in whole.objective.module.state_dict().items():
        assert torch.equal(value, resumed.objective.module.state_dict()[name]), name
    assert all(torch.equal(value, resumed.ema.average[name]) for name, value in whole.ema.average.items())


def test_the_curriculum_takes_equal_shares_and_depends_on_the_iteration_alone() -> None:
    made = objective(config(levels=(2, 4)))
    counts = []
    for step in range(6):
        made.enter(step)
        counts.append(len(made.levels) - 1)
    assert counts == [2, 2, 2, 4, 4, 4]


def test_levels_are_drawn_by_the_mass_down_to_the_next() -> None:
    noise = NoiseRange(0.1, 50.0, 7.0)
    levels = lcm_sigmas(4, 0.1, 50.0)
    weights = level_weights(levels, noise, 0.0, 1.0)
    normal = torch.distributions.Normal(0.0, 1.0)
    edges = torch.tensor([*levels[:-1], 0.1]).log()
    expected = normal.cdf(edges[:-1]) - normal.cdf(edges[1:])
    torch.testing.assert_close((weights / weights.sum()).float(), expected / expected.sum(), atol=1e-5, rtol=0)


def test_the_teacher_steps_through_every_level_of_the_student() -> None:
    noise, levels = NoiseRange(0.1, 50.0, 7.0), lcm_sigmas(4, 0.1, 50.0)
    assert teacher_sigmas(levels, 1, noise) == levels
    finer = teacher_sigmas(levels[2:], 3, noise)
    assert finer[0] == levels[2] and finer[3] == levels[3] and finer[-1] == 0
    assert len(finer) == 7 and all(high > low for high, low in itertools.pairwise(finer))
    between = torch.tensor(finer[:4]) ** (1 / 7)
    torch.testing.assert_close(between.diff(), between.diff()[:1].expand(3), atol=1e-4, rtol=0)
    assert karras_sigmas(40, 0.1, 50.0)[20] == levels[2]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("condition_dropout=0.1", "never guided"),
        ("init=", "starts from a trained denoiser"),
        ("distil.levels=7", "must divide 40"),
        ("distil.default_steps=3", "must divide the 4 levels"),
        ("distil.huber=0", "above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        with_overrides(RECIPES["mini-image-to-video-fast"](), [override])


def test_the_published_recipe_is_a_curriculum_of_consistency() -> None:
    recipe = PUBLISHED["image-to-video-25-fast"]()
    assert isinstance(recipe, ConsistencyConfig)
    assert recipe.distil == Distillation(
        max_guidance=3.0, levels=(10, 20, 40), solve_to_end=False, huber=1e-3, default_steps=4
    )
    assert recipe.condition_dropout == 0 and recipe.init == "image-to-video-25"

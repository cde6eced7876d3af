"""The preview's map is found again where colours are linear in the latents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from model.catalog import ModelEntry
from model.sampling.row import guidance_scale, needs_unconditional
from model.sampling.solvers import evaluations, make_schedule
from model.tasks import task
from training.data.frames import Clip
from training.data.latents import LatentClip
from training.data.starter import Item
from training.recipes import RECIPES
from training.release import DEFAULTS, distilled_defaults, fit_latent_colours


def test_a_linear_map_is_found_again() -> None:
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(5, 3)) / 10, np.array([0.1, -0.1, 0.0])
    latents = rng.normal(size=(1, 5, 8, 16)).astype(np.float16)
    colours = np.einsum("tchw,cd->thwd", 0.5 * latents.astype(np.float64), weights) + bias
    frames = ((colours + 1) * 127.5).round().clip(0, 255).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    item = Item.__new__(Item)  # only the pixels matter here
    clip = LatentClip(Clip(item, frames), latents, np.zeros((1, 2), np.float32), {})
    found = fit_latent_colours([clip], scaling_factor=0.5)
    assert np.allclose(found["weights"], weights, atol=5e-3)
    assert np.allclose(found["bias"], bias, atol=5e-3)


def test_a_request_to_a_distilled_checkpoint_needs_nothing_and_is_four_unguided_evaluations() -> None:
    values = dataclasses.asdict(RECIPES["mini-image-to-video-fast"]())
    assert distilled_defaults(dataclasses.asdict(RECIPES["mini-image-to-video"]())) == {}
    defaults = DEFAULTS | distilled_defaults(values)
    entry = ModelEntry("fast", Path("fast"), task("image-to-video"), "0" * 12, (14,), 128, 224, 32, defaults)
    params = entry.resolve({}, seed=1)
    assert (params.solver, params.schedule, evaluations(params.solver, params.num_inference_steps)) == ("lcm", "lcm", 4)
    assert not needs_unconditional(guidance_scale(entry.task.guidance, *params.guidance_range, 14))
    trained = make_schedule("lcm", 4, sigma_min=0.3, sigma_max=100.0, rho=7.0)
    for steps in (1, 2, 4):
        sampled = make_schedule("lcm", steps, sigma_min=0.3, sigma_max=100.0, rho=7.0)
        assert set(sampled) <= set(trained), "every level that is sampled was trained"

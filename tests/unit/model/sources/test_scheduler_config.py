"""Each setting of a scheduler's config is obeyed as diffusers obeys it, refused by name, or changes nothing there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from model.checkpoint import scheduler_for
from model.denoiser import Conditioning
from model.errors import CheckpointError
from model.presets import NoiseRange
from model.sampling.row import BatchKey, Row
from model.sampling.solvers import karras_sigmas
from model.shapes import LatentShape
from model.sources.architecture import check_scheduler, read_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2.5
PUBLISHED: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.24.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}
"""As published with Stable Video Diffusion."""
STEPS = 7


def theirs(**changes: Any) -> EulerDiscreteScheduler:
    scheduler = EulerDiscreteScheduler.from_config(PUBLISHED | changes)
    scheduler.set_timesteps(STEPS)
    return scheduler


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("ends", [(0.002, 700.0), (0.3, 5.0)])
def test_sigmas_and_the_first_latents_are_diffusers(spacing: str, ends: tuple[float, float]) -> None:
    changes = {"sigma_min": ends[0], "sigma_max": ends[1], "timestep_spacing": spacing}
    config, reference = check_scheduler(PUBLISHED | changes, "x"), theirs(**changes)
    ours = karras_sigmas(STEPS, config.sigma_min, config.sigma_max)
    np.testing.assert_allclose(ours, reference.sigmas.numpy(), rtol=2e-6)
    np.testing.assert_allclose(0.25 * np.log(ours[:-1]), reference.timesteps.numpy(), rtol=2e-5, atol=1e-6)
    shape = LatentShape(2, 4, 8, 8)
    noise = torch.ones(shape.as_tuple())
    row = Row.begin(
        BatchKey("m", shape, "float32"),
        solver="euler",
        sigmas=ours,
        noise=noise,
        conditioning=Conditioning(torch.zeros(1, 2), torch.zeros(2, 4, 8, 8), torch.zeros(3)),
        scale=torch.ones(2),
        seed=0,
        unit_start=config.unit_start,
    )
    torch.testing.assert_close(row.latents, noise * float(reference.init_noise_sigma), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_start": 0.001, "beta_end": 0.02},
        {"beta_schedule": "linear"},
        {"steps_offset": 0},
        {"interpolation_type": "log_linear"},
        {"rescale_betas_zero_snr": True},
        {"clip_sample": True, "set_alpha_to_one": True, "skip_prk_steps": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_passed_over_changes_nothing_in_diffusers_either(changes: dict[str, Any]) -> None:
    assert check_scheduler(PUBLISHED | changes, "x") == check_scheduler(PUBLISHED, "x")
    if "rescale_betas_zero_snr" in changes:
        changes = changes | {"trained_betas": None}
    torch.testing.assert_close(theirs(**changes).sigmas, theirs().sigmas)
    torch.testing.assert_close(theirs(**changes).timesteps, theirs().timesteps)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_karras_sigmas": False},
        {"use_karras_sigmas": False, "use_exponential_sigmas": True},
        {"use_karras_sigmas": False, "use_beta_sigmas": True},
        {"final_sigmas_type": "sigma_min"},
        {"timestep_type": "discrete"},
        {"prediction_type": "epsilon"},
        {"prediction_type": "sample"},
        {"timestep_spacing": "quadratic"},
        {"sigma_min": None},
        {"sigma_max": None},
        {"sigma_max": "large"},
        {"_class_name": "EulerAncestralDiscreteScheduler"},
        {"use_flow_sigmas": True},
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)
def test_what_would_change_the_video_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(changes))) as refused:
        check_scheduler(PUBLISHED | changes, "x/scheduler_config.json")
    assert refused.value.code == "scheduler_unsupported"


@pytest.mark.parametrize("name", ["prediction_type", "timestep_type", "use_karras_sigmas", "sigma_min", "sigma_max"])
def test_an_absent_setting_is_diffusers_own(name: str) -> None:
    """Which is another value than is served: a config that lacks it is refused too."""
    with pytest.raises(CheckpointError, match=name):
        check_scheduler({key: value for key, value in PUBLISHED.items() if key != name}, "x")


def test_an_absent_spacing_is_diffusers_own() -> None:
    config = {key: value for key, value in PUBLISHED.items() if key != "timestep_spacing"}
    assert EulerDiscreteScheduler.from_config(config).config["timestep_spacing"] == "linspace"
    assert check_scheduler(config, "x").unit_start


@pytest.mark.parametrize("noise", [NoiseRange(), NoiseRange(0.3, 100.0, 7.0), NoiseRange(0.3, 100.0, 7.0, True)])
def test_what_we_write_is_what_we_read(noise: NoiseRange, tmp_path: Path) -> None:
    scheduler_for(noise).save_pretrained(tmp_path / "scheduler")
    config = read_scheduler(tmp_path)
    assert (config.sigma_min, config.sigma_max, config.unit_start) == (
        noise.sigma_min,
        noise.sigma_max,
        noise.unit_start,
    )


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({})])
def test_a_broken_config_is_an_error_of_the_checkpoint(text: str, tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_scheduler(tmp_path)
    with pytest.raises(CheckpointError):
        read_scheduler(tmp_path / "nowhere")

"""Schedules against diffusers' own, and the properties every schedule has."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InvalidRequest
from model.sampling.solvers import align_your_steps, karras_sigmas, lcm_sigmas, make_schedule

# diffusers 0.42 meets numpy 2.5 here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("steps", [1, 2, 10, 25, 50])
@pytest.mark.parametrize(("low", "high"), [(0.002, 700.0), (0.01, 80.0)])
def test_karras_is_that_of_diffusers(steps: int, low: float, high: float) -> None:
    scheduler = EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=low, sigma_max=high)
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(karras_sigmas(steps, low, high), scheduler.sigmas.numpy(), rtol=1e-6)


def test_rho_one_is_a_straight_line() -> None:
    np.testing.assert_allclose(karras_sigmas(5, 1.0, 9.0, rho=1.0), [9, 7, 5, 3, 1, 0], rtol=1e-6)


def test_ten_steps_are_the_published_ones() -> None:
    np.testing.assert_allclose(align_your_steps(10), AysSchedules["StableDiffusionVideoSigmas"], rtol=1e-6)


def test_twenty_steps_pass_through_the_published_ones() -> None:
    np.testing.assert_allclose(align_your_steps(20)[::2], AysSchedules["StableDiffusionVideoSigmas"], rtol=1e-6)
    between = np.sqrt(np.array(align_your_steps(10)[:9]) * np.array(align_your_steps(10)[1:10]))
    np.testing.assert_allclose(align_your_steps(20)[1:18:2], between, rtol=1e-6)


@given(
    st.integers(1, 200),
    st.floats(0.0005, 0.05),
    st.floats(10.0, 2000.0),
    st.sampled_from(["karras", "align-your-steps"]),
)
def test_levels_fall_from_within_the_range_to_zero(steps: int, low: float, high: float, name: str) -> None:
    levels = make_schedule(name, steps, sigma_min=low, sigma_max=high, rho=7.0)
    assert len(levels) == steps + 1
    assert levels[-1] == 0.0
    assert all(before > after for before, after in pairwise(levels))
    assert levels[0] <= high * (1 + 1e-6)
    assert levels[-2] >= low * (1 - 1e-6)
    assert all(level == float(np.float32(level)) for level in levels)


@given(st.floats(20.0, 700.0))
def test_a_narrower_range_starts_at_its_own_maximum(high: float) -> None:
    assert align_your_steps(12, 0.01, high)[0] == pytest.approx(high, rel=1e-5)


@pytest.mark.parametrize("schedule", [karras_sigmas, align_your_steps])
def test_no_steps_are_refused(schedule: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        schedule(0, 0.002, 700.0)  # type: ignore[operator]
    assert caught.value.param == "num_inference_steps"


def test_an_unknown_name_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(InvalidRequest, match="karras, align-your-steps, lcm"):
        make_schedule("linear", 5, sigma_min=0.1, sigma_max=1.0, rho=7.0)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 3, 40])
def test_lcm_takes_every_so_manieth_of_the_distilled_levels(steps: int) -> None:
    levels = karras_sigmas(40, 0.002, 700.0)
    sigmas = lcm_sigmas(steps, 0.002, 700.0)
    assert sigmas[-1] == 0.0 and len(sigmas) == steps + 1
    assert [levels.index(sigma) for sigma in sigmas[:-1]] == [number * (40 // steps) for number in range(steps)]
    with pytest.raises(InvalidRequest, match="at most as many steps"):
        lcm_sigmas(41, 0.002, 700.0)

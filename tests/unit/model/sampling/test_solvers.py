"""Solvers on an ODE whose solution is known, against diffusers, and stopped and resumed anywhere.

For data distributed as N(mu, s^2) the ideal denoiser is D(x; sigma) = (s^2 x + sigma^2 mu) / (s^2 + sigma^2), and the
probability-flow ODE takes x at sigma to mu + (x - mu) s / sqrt(s^2 + sigma^2) at 0.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, EDMDPMSolverMultistepScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.errors import InvalidRequest
from model.sampling.solvers import SOLVERS, SolverState, karras_sigmas, lcm_sigmas, solver

# diffusers 0.42 meets numpy 2.5 here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MEAN, SPREAD = 0.7, 0.5


def gaussian(x: Tensor, sigma: float) -> Tensor:
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def slope(x: Tensor, sigma: float) -> Tensor:
    return (x - gaussian(x, sigma)) / sigma


def step_noise(step: int) -> Tensor:
    return torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(step))


def solve(name: str, sigmas: tuple[float, ...], x: Tensor) -> tuple[Tensor, int]:
    state, calls, how = SolverState(x), 0, solver(name)  # type: ignore[arg-type]
    while state.step < len(sigmas) - 1:
        assert how.evaluations_left(state, sigmas) > 0
        wanted = how.request(state, sigmas)
        state = how.advance(state, sigmas, slope(wanted.x, wanted.sigma), step_noise)
        calls += 1
    assert how.evaluations_left(state, sigmas) == 0
    return state.x, calls


def error(name: str, steps: int) -> float:
    # The range ends well above 0 so that the last, Euler, step onto 0 does not hide the order: it is left out.
    high, low = 10.0, 0.2
    ladder = [high * (low / high) ** (i / steps) for i in range(steps + 1)]
    start = torch.full((1, 1, 1, 1), 4.0, dtype=torch.float64)
    state, how = SolverState(start), solver(name)  # type: ignore[arg-type]
    while state.step < steps:
        wanted = how.request(state, (*ladder, 0.0))
        state = how.advance(state, (*ladder, 0.0), slope(wanted.x, wanted.sigma))
    exact = MEAN + (4.0 - MEAN) * math.sqrt((SPREAD**2 + low**2) / (SPREAD**2 + high**2))
    return abs(float(state.x) - exact)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp-2m", 2)])
def test_the_error_falls_with_the_order_of_the_solver(name: str, order: int) -> None:
    errors = [error(name, steps) for steps in (20, 40, 80, 160)]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("name", "calls"), [("euler", 40), ("heun", 79), ("dpmpp-2m", 40)])
def test_lands_on_the_known_solution(name: str, calls: int) -> None:
    x = torch.linspace(-9, 9, 8, dtype=torch.float64).reshape(2, 1, 2, 2)
    sigmas = karras_sigmas(40, 0.002, 50.0)
    found, made = solve(name, sigmas, x)
    exact = MEAN + (x - MEAN) * SPREAD / math.sqrt(SPREAD**2 + sigmas[0] ** 2)
    assert made == calls
    assert (found - exact).abs().max() < (0.06 if name == "euler" else 0.01)


def test_euler_is_that_of_diffusers() -> None:
    scheduler = EulerDiscreteScheduler(
        prediction_type="sample", timestep_type="continuous", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0
    )
    scheduler.set_timesteps(12)
    scheduler.set_begin_index(0)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 700
    ours, _ = solve("euler", karras_sigmas(12, 0.002, 700.0), x)
    for index, moment in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, moment)
        x = scheduler.step(gaussian(x, float(scheduler.sigmas[index])), moment, x).prev_sample
    assert torch.allclose(ours, x, atol=1e-5)


def test_dpmpp_2m_is_that_of_diffusers() -> None:
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.05, sigma_max=80.0, sigma_data=1.0, sigma_schedule="karras", prediction_type="epsilon"
    )
    scheduler.set_timesteps(20)
    sigmas = tuple(float(sigma) for sigma in scheduler.sigmas)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 80
    ours, _ = solve("dpmpp-2m", sigmas, x)
    for moment, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        # The scheduler wants the network's raw output F; EDM's equation 7 turns the known D into it.
        skip, out = 1 / (sigma**2 + 1), sigma / math.sqrt(sigma**2 + 1)
        raw = (gaussian(x, sigma) - skip * x) / out
        x = scheduler.step(raw, moment, x).prev_sample
    assert torch.allclose(ours, x, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_lcm_is_diffusers_multistep_consistency_sampling(steps: int) -> None:
    """Levels, samples and noise, given the denoised clip; its noise leaves out sigma_min^2, here of no account."""
    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=40, sigma_min=0.002, sigma_max=700.0, sigma_data=1.0, rho=7.0, clip_denoised=False
    )
    scheduler.set_timesteps(steps)
    sigmas = lcm_sigmas(steps, 0.002, 700.0)
    assert torch.allclose(scheduler.sigmas[:-1], torch.tensor(sigmas[:-1]))
    shape = (2, 1, 2, 2)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 700
    drawn, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    noise = [torch.randn(shape, generator=drawn) for _ in range(steps)]
    state, how = SolverState(x), solver("lcm")
    for step, moment in enumerate(scheduler.timesteps):
        state = how.advance(state, sigmas, slope(state.x, sigmas[step]), noise.__getitem__)
        skip, out = scheduler.get_scalings_for_boundary_condition(scheduler.sigmas[step])
        raw = (gaussian(x, sigmas[step]) - skip * x) / out
        scheduler.scale_model_input(x, moment)
        x = scheduler.step(raw, moment, x, generator=theirs).prev_sample
        assert torch.allclose(state.x, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_keeps_the_distribution_of_a_true_consistency_function(steps: int) -> None:
    """f takes a sample of any level along the ODE to 0; noised up again to the next level, it is one of that level."""
    sigmas, count = lcm_sigmas(steps, 0.002, 80.0), 200_000
    draw = torch.Generator().manual_seed(steps)
    how = solver("lcm")
    state = SolverState(MEAN + math.sqrt(SPREAD**2 + sigmas[0] ** 2) * torch.randn(count, 1, 1, 1, generator=draw))
    while state.step < steps:
        wanted = how.request(state, sigmas)
        clean = MEAN + (wanted.x - MEAN) * SPREAD / math.sqrt(SPREAD**2 + wanted.sigma**2)
        derivative = (wanted.x - clean) / wanted.sigma
        state = how.advance(state, sigmas, derivative, lambda _: torch.randn(count, 1, 1, 1, generator=draw))
    assert abs(float(state.x.mean()) - MEAN) < 5 * SPREAD / math.sqrt(count)
    assert abs(float(state.x.std()) / SPREAD - 1) < 5 / math.sqrt(2 * count)


def test_lcm_ends_at_the_denoised_sample() -> None:
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    ours, calls = solve("lcm", (7.0, 0.0), x)
    assert torch.allclose(ours, gaussian(x, 7.0), atol=1e-6)
    assert calls == 1
    two, _ = solve("lcm", (7.0, 2.0, 0.0), x)
    assert torch.allclose(two, gaussian(gaussian(x, 7.0) + 2.0 * step_noise(0), 2.0), atol=1e-6)


@given(st.sampled_from(sorted(SOLVERS)), st.integers(1, 6), st.data())
def test_resumes_from_a_stored_state_to_the_same_bits(name: str, steps: int, data: st.DataObject) -> None:
    sigmas = karras_sigmas(steps, 0.002, 80.0)
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(steps)) * 80
    straight, calls = solve(name, sigmas, x)
    stop = data.draw(st.integers(0, calls))
    state, how = SolverState(x), solver(name)  # type: ignore[arg-type]
    for call in range(calls):
        if call == stop:
            state = copy.deepcopy(state)
        assert how.evaluations_left(state, sigmas) == calls - call
        wanted = how.request(state, sigmas)
        state = how.advance(state, sigmas, slope(wanted.x, wanted.sigma), step_noise)
    assert torch.equal(state.x, straight)


@given(st.sampled_from(sorted(SOLVERS)), st.integers(1, 5))
def test_a_state_is_a_value_that_stepping_does_not_change(name: str, steps: int) -> None:
    sigmas, how = karras_sigmas(steps, 0.002, 80.0), SOLVERS[name]  # type: ignore[index]
    state = SolverState(torch.ones(1, 1, 2, 2))
    wanted = how.request(state, sigmas)
    how.advance(state, sigmas, slope(wanted.x, wanted.sigma), step_noise)
    assert state.step == 0
    assert torch.equal(state.x, torch.ones(1, 1, 2, 2))


def test_an_unknown_solver_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(InvalidRequest, match="euler, heun") as caught:
        solver.__wrapped__("dpm")  # type: ignore[attr-defined]
    assert caught.value.param == "solver"

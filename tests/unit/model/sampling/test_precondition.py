"""Preconditioning against what it must achieve, and against diffusers' scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from model.sampling.sampler import append_dims, loss_weight, ode_derivative, precondition

# diffusers 0.42 meets numpy 2.5 here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

sigmas = st.lists(st.floats(0.002, 700.0), min_size=1, max_size=5)


@given(sigmas)
def test_the_input_has_unit_variance_and_the_target_too(values: list[float]) -> None:
    """EDM, appendix B.6: with data of unit variance, c_in x has variance 1, and so has (y - c_skip x) / c_out."""
    sigma = torch.tensor(values, dtype=torch.float64)
    c = precondition(sigma)
    assert torch.allclose(c.c_in**2 * (1 + sigma**2), torch.ones_like(sigma))
    target_variance = ((1 - c.c_skip) ** 2 + c.c_skip**2 * sigma**2) / c.c_out**2
    assert torch.allclose(target_variance, torch.ones_like(sigma))


@given(sigmas)
def test_the_loss_weight_undoes_the_output_scale(values: list[float]) -> None:
    sigma = torch.tensor(values, dtype=torch.float64)
    assert torch.allclose(loss_weight(sigma) * precondition(sigma).c_out ** 2, torch.ones_like(sigma))


@pytest.mark.parametrize("step", [0, 3, 9])
def test_agrees_with_the_scheduler_of_diffusers(step: int) -> None:
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    scheduler.set_timesteps(10)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)) * scheduler.sigmas[step]
    output = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    c = precondition(scheduler.sigmas[step : step + 1])
    scheduler.set_begin_index(step)
    scaled = scheduler.scale_model_input(x, scheduler.timesteps[step])
    denoised = scheduler.step(output, scheduler.timesteps[step], x).pred_original_sample
    assert torch.allclose(x * c.c_in, scaled)
    assert torch.allclose(c.c_noise[0], scheduler.timesteps[step])
    assert torch.allclose(c.c_skip * x + c.c_out * output, denoised, atol=1e-6)


@given(sigmas, st.integers(0, 1000))
def test_the_slope_is_the_difference_to_the_denoised_sample_over_sigma(values: list[float], seed: int) -> None:
    sigma = torch.tensor(values, dtype=torch.float64)
    x, output = torch.randn(2, len(values), 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    c = precondition(sigma)
    denoised = append_dims(c.c_skip, x) * x + append_dims(c.c_out, x) * output
    assert torch.allclose(
        ode_derivative(x * append_dims(c.c_in, x), output, sigma), (x - denoised) / append_dims(sigma, x), atol=1e-9
    )


def test_the_slope_keeps_its_digits_where_the_difference_would_lose_them() -> None:
    x, output, sigma = torch.tensor([[27.123]]), torch.tensor([[0.4]]), torch.tensor([0.002])
    exact = ode_derivative(x.double() * (sigma.double() ** 2 + 1).rsqrt(), output.double(), sigma.double())
    c = precondition(sigma)
    assert ode_derivative(x * c.c_in, output, sigma).item() == pytest.approx(exact.item(), rel=1e-6)
    lossy = (x - (c.c_skip * x + c.c_out * output)) / sigma
    assert lossy.item() != pytest.approx(exact.item(), rel=1e-5)


def test_each_row_is_multiplied_by_its_own_coefficient() -> None:
    x = torch.ones(2, 3, 4, 5)
    assert (append_dims(torch.tensor([2.0, 3.0]), x) * x).amax(dim=(1, 2, 3)).tolist() == [2.0, 3.0]

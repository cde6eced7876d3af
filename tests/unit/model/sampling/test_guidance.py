"""Guidance over frames."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.sampling.row import guidance_scale, guide, needs_unconditional

scales = st.floats(0.0, 30.0, width=32)


@given(scales, scales, st.integers(2, 25))
def test_linear_runs_from_the_first_value_to_the_last_in_either_direction(low: float, high: float, frames: int) -> None:
    scale = guidance_scale("linear", low, high, frames)
    steps = scale.diff()
    assert scale.shape == (frames,)
    assert scale[0] == low
    assert scale[-1] == high
    assert torch.allclose(steps, steps.mean().expand_as(steps), atol=1e-4)


@given(scales, scales, st.integers(1, 25))
def test_triangular_is_symmetric_and_peaks_in_the_middle(low: float, high: float, frames: int) -> None:
    scale = guidance_scale("triangular", low, high, frames)
    assert torch.allclose(scale, scale.flip(0), atol=1e-4)
    assert scale[0] == pytest.approx(low, abs=1e-5)
    if frames % 2 and frames > 1:
        assert scale[frames // 2] == pytest.approx(high, abs=1e-4)


def test_constant_is_the_upper_value() -> None:
    assert guidance_scale("constant", 1.0, 7.5, 3).tolist() == [7.5, 7.5, 7.5]


@pytest.mark.parametrize(
    ("low", "high", "needed"), [(1.0, 1.0, False), (1.0, 3.0, True), (3.0, 1.0, True), (0.5, 0.5, True)]
)
def test_the_unconditional_pass_is_needed_unless_every_scale_is_one(low: float, high: float, needed: bool) -> None:
    assert needs_unconditional(guidance_scale("linear", low, high, 4)) is needed


@given(st.integers(0, 2**31))
def test_scale_one_is_conditional_and_scale_zero_unconditional_frame_by_frame(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    nothing, told = torch.randn(2, 3, 2, 2, 2, generator=generator)
    guided = guide(nothing, told, torch.tensor([0.0, 1.0, 3.0]))
    assert torch.equal(guided[0], nothing[0])
    assert torch.allclose(guided[1], told[1], atol=1e-6)
    assert torch.allclose(guided[2], 3 * told[2] - 2 * nothing[2], atol=1e-5)

"""Latents that move with the picture: the shift is exact where it can be, and training lowers its error."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import TemporalResnetBlock
from torch import nn
from torch.nn import functional as F

from model.optimized.rewrites import temporal_convolutions
from model.presets import preset
from model.vae import build_vae
from tests.unit.training.support import moving_square
from training.objectives.equivariance import EquivarianceObjective, shift_error, shifted
from training.recipes.vae import mini_vae_equivariant

RECIPE = mini_vae_equivariant()
CONFIG = dataclasses.replace(RECIPE, preset="tiny", optim=dataclasses.replace(RECIPE.optim, batch=2), crop=40)


class Averages(nn.Module):
    """An encoder whose latent is the mean of a cell: of a ramp, a shift of it is exact."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(pixels, 8)


class Corners(nn.Module):
    """An encoder whose latent is one pixel of a cell: a shift of the picture changes it altogether."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[..., ::8, ::8]


def test_whole_cells_shift_exactly_and_parts_are_interpolated() -> None:
    latents = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert torch.equal(shifted(latents, 0, 0), latents[..., :2, :3])
    assert torch.allclose(shifted(latents, 0, 4), latents[..., :2, :3] + 0.5)
    assert torch.allclose(shifted(latents, 2, 0), latents[..., :2, :3] + 1.0)


def test_the_error_is_zero_for_latents_that_move_and_large_for_those_that_do_not() -> None:
    side = torch.arange(72.0)
    ramp = (0.01 * side[:, None] + 0.02 * side[None])[None, None].expand(1, 3, 72, 72)
    noise = torch.randn(2, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    for pixels in (1, 4, 7):
        assert shift_error(Averages(), ramp, pixels, pixels) < 1e-8
        assert shift_error(Corners(), noise, 0, pixels) > 0.9
    assert shift_error(Corners(), noise, 0, 0) == 0


class BothOf(nn.Module):
    """A smooth channel that moves, and beside it one that does not, however small."""

    def __init__(self, smooth: float) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.smooth * pixels[:, :1, ::8, ::8], pixels[:, 1:2, ::8, ::8]], 1)


def test_a_larger_smooth_channel_does_not_hide_one_that_does_not_move() -> None:
    ramp = (0.01 * torch.arange(72.0)).expand(2, 1, 72, 72)
    noise = torch.randn(2, 1, 72, 72, generator=torch.Generator().manual_seed(0))
    pixels = torch.cat([ramp, noise], 1)
    errors = [shift_error(BothOf(smooth), pixels, 0, 4).item() for smooth in (1.0, 100.0)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3) and errors[0] > 0.4


@pytest.fixture
def objective() -> EquivarianceObjective:
    torch.manual_seed(0)
    vae = build_vae(preset("tiny"))
    temporal_convolutions(cast(nn.Module, vae))
    return EquivarianceObjective(CONFIG, vae, [moving_square(f"c{i}", seed=i) for i in range(3)])


@pytest.mark.slow
def test_training_lowers_the_error_and_leaves_the_temporal_layers_alone(objective: EquivarianceObjective) -> None:
    module = objective.module
    before = {name: p.clone() for name, p in module.named_parameters()}
    still = {
        f"{name}.{inner}"
        for name, layer in module.named_modules()
        if isinstance(layer, TemporalResnetBlock | Attention)
        for inner, _ in layer.named_parameters()
    }
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=2e-3)
    logs = []
    for step in range(40):
        optimizer.zero_grad()
        logs.append(objective.backward(step))
        optimizer.step()
    first, last = ({name: sum(log[name] for log in part) for name in logs[0]} for part in (logs[:6], logs[-6:]))
    assert last["apart"] < 0.7 * first["apart"] and last["l1"] < 0.9 * first["l1"]
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert still and not moved & still
    assert any(name.startswith("encoder.") for name in moved) and any(name.startswith("decoder.") for name in moved)


@pytest.mark.slow
def test_a_batch_depends_on_the_iteration_alone(objective: EquivarianceObjective) -> None:
    with torch.no_grad():
        first, again, other = (objective.loss(step)[0].item() for step in (3, 3, 4))
    assert first == again != other

"""Fitting a decoder: its late layers learn, and nothing before them moves, so latents stay what they were."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest
import torch
from torch import nn

from model.optimized.rewrites import temporal_convolutions
from model.presets import preset
from model.vae import build_vae
from tests.unit.training.support import moving_square
from training.objectives.decoder import DecoderObjective
from training.recipes.vae import mini_decoder_orbits
from training.release import LATE_LAYERS

CONFIG = dataclasses.replace(
    mini_decoder_orbits(),
    preset="tiny",
    optim=dataclasses.replace(mini_decoder_orbits().optim, batch=2),
    crop=32,
    frames=2,
)


@pytest.fixture
def objective() -> DecoderObjective:
    torch.manual_seed(0)
    vae = build_vae(preset("tiny"))
    temporal_convolutions(cast(nn.Module, vae))
    return DecoderObjective(CONFIG, vae, [moving_square(f"c{i}", seed=i) for i in range(3)])


@pytest.mark.slow
def test_it_learns_and_leaves_everything_before_the_late_layers_alone(objective: DecoderObjective) -> None:
    before = {name: p.clone() for name, p in objective.module.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in objective.module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        losses.append(objective.backward(step)["loss"])
        optimizer.step()
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    moved = {name for name, p in objective.module.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith(LATE_LAYERS) for name in moved)
    assert all(p.grad is None for name, p in objective.module.named_parameters() if not name.startswith(LATE_LAYERS))


@pytest.mark.slow
def test_a_batch_depends_on_the_iteration_alone(objective: DecoderObjective) -> None:
    with torch.no_grad():
        first, again, other = (objective.loss(step)[0].item() for step in (3, 3, 4))
    assert first == again != other

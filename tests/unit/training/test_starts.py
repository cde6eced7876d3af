"""Starts: a network of one task becomes another's without changing what it computes for a dropped condition."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.errors import DataError
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from training.config import DenoiserConfig
from training.initial_weights import NEUTRAL, Denoiser, convert_task, empty_network
from training.recipes import RECIPES


@torch.no_grad()
def test_a_narrowed_denoiser_is_the_old_one_with_its_condition_dropped() -> None:
    torch.manual_seed(3)
    unet = build_unet(preset("tiny"), task("image-to-video"), num_frames=2).eval()
    noisy, context = torch.randn(1, 2, 4, 8, 8), torch.zeros(1, 1, 32)
    vector = torch.tensor([[5.0, 90.0, NEUTRAL["noise_aug_strength"]]])
    sigma = torch.tensor([0.2])
    with_condition = torch.cat([noisy, torch.zeros_like(noisy)], 2)
    before = unet(with_condition, sigma, encoder_hidden_states=context, added_time_ids=vector).sample
    narrowed = convert_task(unet, task("image-to-video"), task("text-to-video"), 2)
    assert (narrowed.config["in_channels"], narrowed.conv_in.in_channels) == (4, 4)
    tokens = torch.zeros(1, 77, 32)
    after = narrowed(noisy, sigma, encoder_hidden_states=tokens, added_time_ids=vector[:, :2]).sample
    assert torch.allclose(before, after, atol=1e-5)
    grown = convert_task(narrowed, task("text-to-video"), task("frame-interpolation"), 2)
    assert grown.conv_in.in_channels == 9


def test_a_start_that_would_need_both_is_refused() -> None:
    unet = build_unet(preset("tiny"), task("multi-view"), num_frames=2)
    with pytest.raises(DataError, match="start from another run"):
        convert_task(unet, task("multi-view"), task("frame-interpolation"), 2)


@pytest.mark.parametrize("name", sorted(name for name, recipe in RECIPES.items() if "vae" not in name))
def test_every_denoiser_recipe_has_a_network_of_its_task(name: str) -> None:
    config = RECIPES[name]()
    if not isinstance(config, DenoiserConfig):
        return
    values = dataclasses.asdict(dataclasses.replace(config, preset="tiny"))
    network = empty_network(values)
    assert isinstance(network, Denoiser) == (config.task == "frame-interpolation")

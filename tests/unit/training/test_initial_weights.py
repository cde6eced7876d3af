"""Gentle starts: branches add nothing, and the denoiser repeats its condition."""

from __future__ import annotations

import pytest
import torch

from model.errors import DataError
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from training.initial_weights import branch_ends, start_denoiser, zero_branches


def test_zeroed_branches_are_zero() -> None:
    unet = build_unet(preset("tiny"), task("image-to-video"))
    zero_branches(unet)
    ends = list(branch_ends(unet))
    assert len(ends) > 20
    assert not any(p.any() for end in ends for p in end.parameters())


def test_the_denoiser_starts_as_a_copy_of_its_condition() -> None:
    torch.manual_seed(0)
    unet = build_unet(preset("mini"), task("image-to-video"), num_frames=3)
    start_denoiser(unet)
    condition = torch.randn(1, 3, 16, 8, 8) + torch.randn(1, 1, 16, 1, 1)
    x = torch.cat([torch.randn(1, 3, 16, 8, 8), condition], dim=2)
    with torch.no_grad():
        out = unet(x, torch.tensor([0.5]), torch.randn(1, 1, 128), added_time_ids=torch.ones(1, 3)).sample
    for k in range(16):
        pair = torch.stack([out[0, :, k].flatten(), condition[0, :, k].flatten()])
        assert torch.corrcoef(pair)[0, 1] < -0.8


def test_a_width_that_cannot_hold_the_pairs_is_refused() -> None:
    with pytest.raises(DataError, match="pairs"):
        start_denoiser(build_unet(preset("tiny"), task("image-to-video")))

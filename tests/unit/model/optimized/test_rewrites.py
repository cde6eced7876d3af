"""Exact rewrites: the same numbers and the same keys, against the plain networks and torch's own Conv3d."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.optimized.rewrites import (
    OneTokenAttention,
    fold_blends,
    fold_one_token_attention,
    relative_difference,
    rewrite_exactly,
    temporal_convolutions,
)
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from model.vae import build_vae


@settings(max_examples=20, deadline=None)
@given(t=st.integers(1, 5), h=st.integers(1, 6), w=st.integers(1, 6), seed=st.integers(0, 999))
def test_a_temporal_convolution_is_a_convolution_over_two_dimensions(t: int, h: int, w: int, seed: int) -> None:
    torch.manual_seed(seed)
    plain = nn.Conv3d(3, 5, (3, 1, 1), padding=(1, 0, 0))
    ours = copy.deepcopy(plain)
    assert temporal_convolutions(nn.Sequential(ours)) == 1
    x = torch.randn(2, 3, t, h, w)
    assert torch.allclose(ours(x), plain(x), atol=1e-6)


def test_other_convolutions_are_left_alone() -> None:
    network = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.Conv3d(2, 2, (3, 1, 1)))
    assert temporal_convolutions(network) == 0


def _unet_inputs(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, 6, 8, 8, 8, generator=g),
        torch.tensor([0.3, -0.7])[:rows],
        torch.randn(rows, 1, 32, generator=g),
        torch.tensor([[5.0, 127.0, 0.02], [7.0, 20.0, 0.1]])[:rows],
    )


def test_the_denoiser_s_rewrites_change_rounding_only() -> None:
    torch.manual_seed(0)
    plain = build_unet(preset("tiny"), task("image-to-video")).eval()
    ours = copy.deepcopy(plain)
    rewrite_exactly(ours, context_tokens=1)
    x, timestep, context, vector = _unet_inputs()
    with torch.inference_mode():
        before = plain(x, timestep, context, added_time_ids=vector).sample
        after = ours(x, timestep, context, added_time_ids=vector).sample
    assert relative_difference(after, before) < 1e-5
    assert list(ours.state_dict()) == list(plain.state_dict())


def test_every_cross_attention_of_the_denoiser_is_folded() -> None:
    unet = build_unet(preset("tiny"), task("image-to-video"))
    assert fold_one_token_attention(unet) == sum(name.endswith("attn2") for name, _ in unet.named_modules()) > 0


def test_the_fold_refuses_a_longer_context() -> None:
    unet = build_unet(preset("tiny"), task("image-to-video"))
    fold_one_token_attention(unet)
    x, timestep, context, vector = _unet_inputs()
    with pytest.raises(AssertionError):
        unet(x, timestep, context.expand(-1, 2, -1), added_time_ids=vector)
    assert OneTokenAttention is not None


def test_the_autoencoder_s_rewrite_changes_rounding_only() -> None:
    torch.manual_seed(0)
    plain = build_vae(preset("tiny")).eval()
    ours = copy.deepcopy(plain)
    assert temporal_convolutions(ours) > 0
    latents = torch.randn(3, 4, 8, 8)
    with torch.inference_mode():
        assert relative_difference(ours.decode(latents, 3).sample, plain.decode(latents, 3).sample) < 1e-5


def test_the_rewritten_weight_gradient_is_that_of_the_plain_form() -> None:
    plain = nn.Conv3d(3, 4, (3, 1, 1), padding=(1, 0, 0))
    ours = copy.deepcopy(plain)
    temporal_convolutions(nn.Sequential(ours))
    x = torch.randn(1, 3, 2, 4, 4)
    for layer in (plain, ours):
        layer(x).square().mean().backward()
    assert plain.weight.grad is not None and ours.weight.grad is not None
    assert torch.allclose(ours.weight.grad, plain.weight.grad, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_blend_without_still_pictures_is_a_constant(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = build_unet(preset("tiny"), task("image-to-video")).eval().to(dtype)
    for name, value in plain.named_parameters():
        if name.endswith("mix_factor"):
            value.data.normal_()
    ours = copy.deepcopy(plain)
    assert fold_blends(ours) == sum(name.endswith("mix_factor") for name, _ in plain.named_parameters()) > 0
    x, timestep, context, vector = _unet_inputs()
    with torch.inference_mode():
        before = plain(x.to(dtype), timestep, context.to(dtype), added_time_ids=vector).sample
        after = ours(x.to(dtype), timestep, context.to(dtype), added_time_ids=vector).sample
    assert after.dtype == dtype
    assert relative_difference(after.float(), before.float()) < (1e-5 if dtype == torch.float32 else 5e-2)
    assert list(ours.state_dict()) == list(plain.state_dict())


def test_the_autoencoder_blends_the_other_way_round() -> None:
    torch.manual_seed(0)
    plain = build_vae(preset("tiny")).eval()
    for name, value in plain.named_parameters():
        if name.endswith("mix_factor"):
            value.data.normal_()
    ours = copy.deepcopy(plain)
    assert fold_blends(ours) > 0
    latents = torch.randn(3, 4, 8, 8)
    with torch.inference_mode():
        assert relative_difference(ours.decode(latents, 3).sample, plain.decode(latents, 3).sample) < 1e-5

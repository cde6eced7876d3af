"""Doubling with four small convolutions: diffusers' Upsample2D gives the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from hypothesis import given, settings
from hypothesis import strategies as st

from model.optimized.fused_blocks import fuse
from model.optimized.rewrites import PhaseUpsample2D, can_use_phases, phases, relative_difference, upsample_nearest_conv
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from model.vae import build_vae


def layer(channels: int, out: int, seed: int = 0) -> Upsample2D:
    torch.manual_seed(seed)
    return Upsample2D(channels, use_conv=True, out_channels=out).eval().requires_grad_(False)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))
def test_any_size_gives_what_doubling_first_gives(count: int, channels: int, out: int, height: int, width: int) -> None:
    plain = layer(channels, out)
    pictures = torch.randn(count, channels, height, width)
    mine = upsample_nearest_conv(pictures, phases(plain.conv.weight), plain.conv.bias)
    assert mine.shape == (count, out, 2 * height, 2 * width)
    assert relative_difference(mine, plain(pictures)) < 1e-5


def test_without_bias_and_in_double_precision_the_sums_are_the_same() -> None:
    weight, pictures = torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    large = pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)
    there = torch.nn.functional.conv2d(large, weight, padding=1)
    assert relative_difference(upsample_nearest_conv(pictures, phases(weight), None), there) < 1e-14


def test_the_answer_is_channels_last_like_what_follows_it() -> None:
    mine = upsample_nearest_conv(torch.randn(2, 8, 4, 4), phases(torch.randn(8, 8, 3, 3)), None)
    assert mine.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "other",
    [
        Upsample2D(4, use_conv=True, use_conv_transpose=True),
        Upsample2D(4, use_conv=False),
        Upsample2D(4, use_conv=True, kernel_size=5, padding=2),
        Upsample2D(4, use_conv=True, norm_type="rms_norm", eps=1e-6),
        Upsample2D(4, use_conv=True).half(),
        torch.nn.Conv2d(4, 4, 3),
    ],
)
def test_another_kind_of_layer_stays_as_it_is(other: torch.nn.Module) -> None:
    assert not can_use_phases(other)


def test_networks_get_it_and_another_size_asked_for_goes_the_old_way() -> None:
    for network in (build_vae(preset("tiny")), build_unet(preset("tiny"), task("image-to-video"))):
        kinds = [type(part) for part in copy.deepcopy(network).modules()]
        fuse(network)
        lean = [part for part in network.modules() if isinstance(part, PhaseUpsample2D)]
        assert len(lean) == kinds.count(Upsample2D) > 0
    odd = lean[0](torch.randn(1, lean[0].channels, 3, 3), output_size=(5, 5))
    assert odd.shape[-2:] == (5, 5)

"""Network sizes: the published ones to the last parameter, under diffusers' names."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel

from model.errors import InvalidRequest
from model.presets import PRESETS, preset
from model.tasks import task
from model.unet import build_unet, count_parameters

SVD_XT_PARAMETERS = 1_524_623_082


@pytest.mark.parametrize("name", ["svd", "svd-xt"])
def test_published_unets_have_the_published_size_and_keys(name: str) -> None:
    ours = build_unet(preset(name), task("image-to-video"), device="meta")
    assert count_parameters(ours) == SVD_XT_PARAMETERS
    with torch.device("meta"):
        published = UNetSpatioTemporalConditionModel(num_frames=25)  # diffusers' defaults are the published config
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in published.state_dict().items()}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_takes_the_task_s_channels(name: str) -> None:
    size = preset(name)
    unet = build_unet(size, task("image-to-video"), device="meta")
    assert unet.config["in_channels"] == 2 * size.vae.latent_channels
    assert unet.config["num_frames"] == size.num_frames


def test_four_mini_checkpoints_fit_in_what_may_ship() -> None:
    unet = count_parameters(build_unet(preset("mini"), task("image-to-video"), device="meta"))
    assert 2 * unet <= 16e6


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(InvalidRequest, match="svd-xt"):
        preset("huge")

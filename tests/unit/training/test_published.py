"""The paper's recipes at real network size on the meta device, and the values of FACTS that they must have."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from typing import cast

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import nn

from model.tasks import task
from model.unet import count_parameters
from training.config import LoraConfig, Runtime
from training.initial_weights import Denoiser
from training.memory_plan import inputs_of, meta_network
from training.objectives.denoise import DenoiseObjective
from training.objectives.protocol import Examples
from training.recipes import PUBLISHED, RECIPES
from training.recipes.published import frame_interpolation, image_to_video_14

SVD = 1_524_623_082
# What a task's inputs change: conv_in has 320 x 9 weights a channel, the vector's first layer 1280 a number of it.
CHANNEL, NUMBER = 320 * 9, 1280
COUNTS = {
    "text-to-video": SVD - 4 * CHANNEL - 256 * NUMBER,
    "image-to-video": SVD,
    "frame-interpolation": SVD + CHANNEL,
    "multi-view": SVD + 256 * NUMBER,
}
# name: (start, frames, height, width, iterations, batch, lr, P_mean, P_std), as in the paper's appendix.
VALUES = {
    "image-pretraining": ("stable-diffusion-2-1", 14, 256, 384, 31_000, 1536, 1e-4, -1.2, 1.0),
    "video-pretraining-low": ("image-pretraining", 14, 256, 384, 150_000, 1536, 1e-4, -1.2, 1.2),
    "video-pretraining-base": ("video-pretraining-low", 14, 320, 576, 100_000, 768, 1e-4, 0.0, 1.0),
    "text-to-video": ("video-pretraining-base", 14, 576, 1024, 50_000, 768, 3e-5, 0.5, 1.4),
    "image-to-video-low": ("video-pretraining-base", 14, 320, 576, 50_000, 768, 3e-5, 0.7, 1.6),
    "image-to-video-14": ("image-to-video-low", 14, 576, 1024, 50_000, 768, 3e-5, 1.0, 1.6),
    "image-to-video-25": ("image-to-video-14", 25, 576, 1024, 50_000, 768, 3e-5, 1.0, 1.6),
    "frame-interpolation": ("text-to-video", 5, 576, 1024, 10_000, 256, 1e-4, 1.0, 1.2),
    "multi-view": ("image-to-video-25", 21, 576, 576, 12_000, 16, 1e-5, 1.0, 1.6),
    # Ours: the paper distils nothing.
    "image-to-video-25-fast": ("image-to-video-25", 25, 576, 1024, 10_000, 64, 1e-5, 1.0, 1.6),
    # Of these three the paper gives the base's task, the iterations, the rank and the layers.
    **{
        f"camera-lora-{motion}": ("image-to-video-14", 14, 576, 1024, 5_000, 16, 1e-4, 1.0, 1.6)
        for motion in ("horizontal", "zoom", "static")
    },
}


@cache
def network(task_name: str) -> UNetSpatioTemporalConditionModel:
    """One meta network a task; building it takes seconds, and the frame count changes nothing in it."""
    return meta_network(next(recipe() for recipe in PUBLISHED.values() if recipe().task == task_name))


def test_every_published_stage_has_its_values() -> None:
    told = {
        name: (
            c.base if isinstance(c, LoraConfig) else c.init,
            c.num_frames,
            c.height,
            c.width,
            c.optim.iterations,
            c.optim.batch,
            c.optim.lr,
            c.p_mean,
            c.p_std,
        )
        for name, c in ((name, recipe()) for name, recipe in PUBLISHED.items())
    }
    assert told == VALUES
    assert {recipe().optim.ema_decay for recipe in PUBLISHED.values()} == {0.9999}


@pytest.mark.parametrize("name", sorted(VALUES))
def test_the_network_of_a_published_stage(name: str) -> None:
    config = PUBLISHED[name]()
    unet = network(config.task)
    assert sum(p.numel() for p in unet.parameters()) == COUNTS[config.task]
    spec = task(config.task)
    shapes = inputs_of(config, 2)
    latent = (config.height // 8, config.width // 8)
    channels = {"text-to-video": 0, "image-to-video": 4, "frame-interpolation": 5, "multi-view": 4}[config.task]
    assert shapes == {
        "noisy": (2, config.num_frames, 4, *latent),
        "concat": (2, config.num_frames, channels, *latent),
        "sigma": (2,),
        "context": (2, spec.context_tokens, 1024),
        "vector": (2, len(spec.vector)),
    }
    assert unet.conv_in.in_channels == 4 + channels
    assert unet.add_embedding.linear_1.in_features == 256 * len(spec.vector)


class Nothing:
    """No examples are drawn."""


@pytest.mark.parametrize("name", sorted(VALUES))
def test_what_trains_in_a_published_stage(name: str) -> None:
    config = dataclasses.replace(PUBLISHED[name](), runtime=Runtime())
    masks = task(config.task).concat_masks
    unet = network(config.task)
    trained = Denoiser(unet, torch.zeros(4)) if masks else cast(nn.Module, unet)
    objective = DenoiseObjective(config, trained, cast(Examples, Nothing()))
    whole, time_embedding = COUNTS[config.task] + 4 * masks, 320 * 1280 + 1280 * 1281 + 1280
    for step in (0, 999, 1000, config.optim.iterations - 1):
        objective.enter(step)
        alone = name == "image-pretraining" and step < 1000
        assert count_parameters(objective.module, trainable=True) == (time_embedding if alone else whole)


def test_contradictions_of_the_paper_are_arguments() -> None:
    assert frame_interpolation(latent_height=52).height == 416
    assert frame_interpolation(init="video-pretraining-base").init == "video-pretraining-base"
    assert image_to_video_14().preset == "svd"


@pytest.mark.parametrize(
    ("motion", "motions"),
    [("horizontal", {"pan left", "pan right"}), ("zoom", {"zoom in", "zoom out"}), ("static", {"still"})],
)
def test_a_camera_lora_has_the_paper_s_rank_and_the_motions_of_its_name(motion: str, motions: set[str]) -> None:
    config = PUBLISHED[f"camera-lora-{motion}"]()
    assert isinstance(config, LoraConfig)
    assert (config.rank, config.name, set(config.data.motions)) == (16, f"camera-{motion}", motions)
    mini = RECIPES[f"mini-camera-lora-{motion}"]()
    assert isinstance(mini, LoraConfig)
    assert (mini.rank, mini.name, mini.data.motions) == (16, config.name, config.data.motions)


def test_a_camera_lora_s_network_at_its_real_size() -> None:
    unet = meta_network(PUBLISHED["camera-lora-zoom"]())
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    # Self-attention along time: 5 blocks of width 320, 5 of 640, 6 of 1280, each with four projections.
    assert sum(p.numel() for p in trained.values()) == 4 * 2 * 16 * (5 * 320 + 5 * 640 + 6 * 1280)
    assert sum(p.numel() for p in unet.parameters()) == SVD + sum(p.numel() for p in trained.values())
    shape = r"temporal_transformer_blocks\.0\.attn1\.to_(q|k|v|out\.0)\.lora_(A|B)\.weight$"
    assert all(re.search(shape, name) for name in trained)
    assert len(trained) == 2 * 4 * 16

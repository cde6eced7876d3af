"""A step of every recipe at the tiny size, on made-up examples: for a CPU and, by the same code, for a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from model.optimized.rewrites import rewrite_exactly
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from model.vae import build_vae
from tests.unit.training.support import moving_square
from training.config import (
    ConsistencyConfig,
    DecoderConfig,
    DenoiserConfig,
    EquivarianceConfig,
    ImageEncoderConfig,
    LoraConfig,
    VAEConfig,
)
from training.data.latents import LatentClip
from training.initial_weights import build_network, unet_of
from training.lora import LoraObjective
from training.objectives.consistency import ConsistencyObjective
from training.objectives.contrastive import ContrastiveObjective
from training.objectives.decoder import DecoderObjective
from training.objectives.denoise import DenoiseObjective
from training.objectives.equivariance import EquivarianceObjective
from training.objectives.protocol import Batch
from training.objectives.vae import VAEObjective
from training.recipes import RECIPES

FRAMES, SIDE, TOKENS_WIDTH = 3, 8, 32


class Drawn:
    """Random clips of a task's shape, each a function of its generator."""

    def __init__(self, name: str) -> None:
        self.task = task(name)
        self.clips: list[LatentClip] = []

    def example(self, draw: torch.Generator) -> Batch:
        """One clip of 3 frames of 8 x 8 cells."""
        channels = preset("tiny").vae.latent_channels
        concatenated = self.task.unet_in_channels(channels) - channels
        return Batch(
            torch.randn(1, FRAMES, channels, SIDE, SIDE, generator=draw),
            torch.randn(1, FRAMES, concatenated, SIDE, SIDE, generator=draw),
            torch.randn(1, self.task.context_tokens, TOKENS_WIDTH, generator=draw),
            torch.rand(1, len(self.task.vector), generator=draw),
            ("drawn",),
        )


def objective_of(recipe: str, device: torch.device) -> Any:
    """The recipe's objective on a tiny network with random weights, two rows an iteration."""
    config: Any = RECIPES[recipe]()
    config = dataclasses.replace(config, preset="tiny", optim=dataclasses.replace(config.optim, batch=2))
    clips = [moving_square(f"c{number}", frames=4, seed=number) for number in range(3)]
    torch.manual_seed(0)
    if isinstance(config, LoraConfig):
        base = build_unet(preset("tiny"), task(config.task), num_frames=FRAMES).eval().requires_grad_(False)
        rewrite_exactly(cast(nn.Module, base), context_tokens=task(config.task).context_tokens)
        lora = LoraObjective(dataclasses.replace(config, num_frames=FRAMES), base, Drawn(config.task))
        lora.unet.to(device)
        return lora
    if isinstance(config, DenoiserConfig):
        config = dataclasses.replace(config, num_frames=FRAMES, window_until=0, height=64, width=64)
        network, examples = _denoiser(config.task, device), Drawn(config.task)
        if isinstance(config, ConsistencyConfig):
            return ConsistencyObjective(config, network, unet_of(_denoiser(config.task, device)), examples)
        return DenoiseObjective(config, network, examples)
    if isinstance(config, VAEConfig):
        return VAEObjective(dataclasses.replace(config, phase_batch=2, crop=32, frames=2), clips, device)
    if isinstance(config, DecoderConfig):
        return DecoderObjective(
            dataclasses.replace(config, crop=32, frames=2), build_vae(preset("tiny")).to(device), clips
        )
    if isinstance(config, EquivarianceConfig):
        return EquivarianceObjective(dataclasses.replace(config, crop=40), build_vae(preset("tiny")).to(device), clips)
    assert isinstance(config, ImageEncoderConfig)
    return ContrastiveObjective(config, clips, device)


def _denoiser(name: str, device: torch.device) -> nn.Module:
    """A network of the task as a run begins with it, from random weights."""
    like: Any = RECIPES["mini-text-to-video"]()
    fresh = dataclasses.replace(like, preset="tiny", task=name, init="", copying_start=False, num_frames=FRAMES)
    return build_network(fresh, out=Path()).to(device)


def check_step(recipe: str, device: torch.device) -> None:
    """One iteration: the loss is a number, and every gradient is finite and where the network is."""
    objective = objective_of(recipe, device)
    objective.enter(0)
    loss = objective.backward(0)["loss"]
    assert 0 < loss < float("inf")
    gradients = [p.grad for p in objective.module.parameters() if p.grad is not None]
    assert gradients
    assert all(one.device.type == device.type and bool(one.isfinite().all()) for one in gradients)
    assert any(bool(one.any()) for one in gradients)


__all__ = ["RECIPES", "check_step"]

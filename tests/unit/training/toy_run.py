"""A small run on made-up latents, to be started in processes of its own.

It trains a tiny text-to-video denoiser through the same trainer and objective as every run. Under WORLD_SIZE > 1 the
processes share the rows, and with `runtime.sharding=fsdp2` the parameters too.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from model.optimized.rewrites import rewrite_exactly
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from training.config import DenoiserConfig
from training.data.latents import LatentClip
from training.initial_weights import unet_of
from training.joint_image_video import enable_image_rows
from training.objectives.denoise import DenoiseObjective
from training.objectives.protocol import Batch
from training.overrides import with_overrides
from training.recipes.text_to_video import mini_text_to_video
from training.trainer import Trainer, has_state

FRAMES = 3


def config() -> DenoiserConfig:
    """Two rows an iteration, 20 iterations, saved every third."""
    recipe = mini_text_to_video()
    optim = dataclasses.replace(
        recipe.optim,
        iterations=20,
        batch=2,
        lr=1e-4,
        warmup=3,
        log_every=1,
        checkpoint_every=3,
        seed=4,
        method="adamw",
    )
    return dataclasses.replace(recipe, preset="tiny", optim=optim, init="", num_frames=FRAMES, window_until=0)


class Waves:
    """Clips whose content runs on by a step a frame; every one is a function of its generator."""

    def __init__(self) -> None:
        self.clips: list[LatentClip] = []

    def example(self, draw: torch.Generator) -> Batch:
        """One clip of 3 frames, or 3 pictures."""
        number = int(torch.randint(0, 50, (), generator=draw))
        base = torch.randn(4, 8, 8 + FRAMES, generator=torch.Generator().manual_seed(number))
        clean = torch.stack([base[..., k : k + 8] for k in range(FRAMES)])[None]
        told = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(number))
        vector = torch.tensor([[5.0, 100.0]])
        if number % 5:
            return Batch(clean, clean[:, :, :0], told, vector, (f"wave-{number}",))
        names = tuple(f"wave-{number}/{k}" for k in range(FRAMES))
        still = clean.transpose(0, 1)
        return Batch(
            still, still[:, :, :0], told.expand(FRAMES, -1, -1), vector.expand(FRAMES, -1), names, pictures=True
        )


def build(settings: DenoiserConfig) -> DenoiseObjective:
    """The objective, on waves."""
    torch.manual_seed(settings.optim.seed)
    unet = build_unet(preset(settings.preset), task(settings.task), num_frames=FRAMES)
    rewrite_exactly(cast(nn.Module, unet), context_tokens=77)
    enable_image_rows(unet)
    return DenoiseObjective(settings, cast(nn.Module, unet), Waves())


def main(folder: Path, overrides: list[str]) -> None:
    """Train, or go on where the folder stands."""
    torch.set_num_threads(1)
    settings = with_overrides(config(), overrides)
    assert isinstance(settings, DenoiserConfig)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    objective = build(settings)
    if settings.runtime.sharding == "fsdp2":
        parameters = list(unet_of(objective.module).parameters())
        assert all(isinstance(p, DTensor) for p in parameters), "every parameter is to be a DTensor"
        held = sum(p.to_local().numel() for p in parameters if isinstance(p, DTensor))
        assert held < 0.7 * sum(p.numel() for p in parameters), "every process holds about half"
    trainer = Trainer(objective, settings, folder)
    if has_state(folder):
        trainer.resume()
    trainer.run()
    if dist.is_initialized():
        dist.destroy_process_group()

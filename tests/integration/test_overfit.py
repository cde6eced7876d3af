"""A tiny denoiser learns two clips by heart: its loss falls, and what it samples is the clip it was asked for."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from model.optimized.rewrites import rewrite_exactly
from model.presets import NoiseRange, preset
from model.tasks import task
from model.unet import build_unet
from training.data.latents import LatentClip
from training.data.seeding import generator
from training.objectives.denoise import DenoiseObjective, sample_clip
from training.objectives.protocol import Batch
from training.recipes.image_to_video import mini_image_to_video

FRAMES, SIDE = 4, 8
ITERATIONS, RATE, WARMUP = 420, 3e-3, 20
NOISE = NoiseRange(0.05, 20.0, 7.0)


class TwoClips:
    """Two clips of smooth shapes that move in opposite directions; rows take turns."""

    def __init__(self) -> None:
        self.clips: list[LatentClip] = []
        self.rows = [self._row(0, 1), self._row(1, -1)]

    def example(self, draw: torch.Generator) -> Batch:
        """One of the two."""
        return self.rows[int(torch.randint(0, 2, (), generator=draw))]

    @staticmethod
    def _row(number: int, direction: int) -> Batch:
        coarse = torch.randn(1, 4, 3, 3, generator=generator(number, 5))
        shape = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")[0]
        clean = torch.stack([shape.roll(direction * t, -1) for t in range(FRAMES)])[None]
        concat = clean[:, :1].expand(1, FRAMES, -1, -1, -1)
        context = torch.full((1, 1, 32), float(direction))
        return Batch(clean, concat, context, torch.tensor([[6.0, 120.0, 0.02]]), (f"clip-{number}",))


def trained(clips: TwoClips) -> tuple[UNetSpatioTemporalConditionModel, list[float]]:
    """A tiny denoiser after ITERATIONS on the two clips, and the losses on the way."""
    recipe = mini_image_to_video()
    config = dataclasses.replace(
        recipe,
        preset="tiny",
        optim=dataclasses.replace(recipe.optim, batch=4, seed=1),
        num_frames=FRAMES,
        window_until=0,
        p_mean=0.0,
        p_std=1.0,
    )
    torch.manual_seed(0)
    unet = build_unet(preset("tiny"), task("image-to-video"), num_frames=FRAMES)
    rewrite_exactly(cast(nn.Module, unet), context_tokens=1)
    objective = DenoiseObjective(config, cast(nn.Module, unet), clips)
    optimizer = torch.optim.AdamW(objective.module.parameters(), lr=RATE, betas=(0.9, 0.99))
    losses: list[float] = []
    for step in range(ITERATIONS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 - step / ITERATIONS)
        losses.append(objective.backward(step)["loss"])
        nn.utils.clip_grad_norm_(objective.module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return unet, losses


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean())


@pytest.mark.slow
@pytest.mark.timeout(900)  # seconds on a quiet machine: 60
def test_two_clips_are_learned_by_heart() -> None:
    clips = TwoClips()
    unet, losses = trained(clips)
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) / 10
    first, second = (row.clean[0] for row in clips.rows)
    for row, target, other in zip(clips.rows, (first, second), (second, first), strict=True):
        made = sample_clip(unet, row, NOISE, steps=10, seed=3)
        still = target[:1].expand_as(target)
        assert distance(made, target) < 0.1 * distance(made, other)
        assert distance(made, target) < 0.2 * distance(still, target), "it moves as the clip does"

"""The denoiser: diffusers' UNetSpatioTemporalConditionModel, built from a preset and a task.

The class and its state-dict keys are diffusers' own, so published checkpoints load unchanged.
"""

from __future__ import annotations

import torch
from diffusers import UNetSpatioTemporalConditionModel

from model.presets import Preset
from model.tasks import TaskSpec


def build_unet(
    preset: Preset, task: TaskSpec, *, device: torch.device | str = "cpu", num_frames: int | None = None
) -> UNetSpatioTemporalConditionModel:
    """A freshly initialised denoiser; on the meta device it takes no memory.

    Args:
        num_frames: the clip length it is made for; the preset's own when left out.
    """
    config = preset.unet.config(task, preset.vae.latent_channels, num_frames or preset.num_frames)
    with torch.device(device):
        return UNetSpatioTemporalConditionModel(**config)


def count_parameters(module: torch.nn.Module, *, trainable: bool = False) -> int:
    """How many numbers a network holds; only those that training changes, if asked."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)

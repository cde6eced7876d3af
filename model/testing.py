"""Randomly initialised checkpoints, for tests and benchmarks only: nothing of the product imports this file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from model.catalog import ModelEntry, describe
from model.checkpoint import Checkpoint, save
from model.encoders import build_conditioners
from model.presets import Preset
from model.shapes import VAE_STRIDE
from model.tasks import TaskSpec
from model.unet import build_unet
from model.vae import build_vae, upcast_encoder


def build_random(
    folder: Path, preset: Preset, task: TaskSpec, seed: int = 0, num_frames: int | None = None
) -> ModelEntry:
    """Save a randomly initialised checkpoint of a preset: for tests and benchmarks, never for users.

    Args:
        num_frames: the clip length it is made for; the preset's own when left out.
    """
    torch.manual_seed(seed)
    sidecar = {
        "task": task.name,
        "width": preset.width,
        "height": preset.height,
        "defaults": {
            "fps": 7,
            "motion_bucket_id": 127,
            "noise_aug_strength": 0.02,
            "min_guidance_scale": task.guidance_range[0],
            "max_guidance_scale": task.guidance_range[1],
            "num_inference_steps": 5,
            "solver": "euler",
            "schedule": "karras",
            "decode_chunk_size": 3,
            "resize_mode": "crop",
            "elevation": 10.0,
        },
    }
    save(
        folder,
        unet=build_unet(preset, task, num_frames=num_frames),
        vae=build_vae(preset),
        conditioners=build_conditioners(preset, task),
        noise=preset.noise,
        sidecar=sidecar,
        dtype=torch.float32,
    )
    return describe(folder)


def on_meta(preset: Preset, task: TaskSpec, dtype: torch.dtype) -> Checkpoint:
    """A checkpoint of a preset on the meta device: shapes and dtypes without weights, as `load` would give it."""
    with torch.device("meta"):
        unet, vae, conditioners = build_unet(preset, task), build_vae(preset), build_conditioners(preset, task)
    for network in (unet, vae, conditioners.network):
        nn.Module.to(network, "meta", dtype)  # AlphaBlender's number is made on the CPU whatever the default
    if dtype == torch.float16 and preset.vae.force_upcast:
        upcast_encoder(vae)
    entry = ModelEntry(
        name=preset.name,
        path=Path(),
        task=task,
        version="",
        num_frames=(preset.num_frames,),
        height=preset.height,
        width=preset.width,
        unit=VAE_STRIDE * 2 ** (len(preset.unet.channels) - 1),
        defaults={},
    )
    return Checkpoint(entry, unet, vae, conditioners, preset.noise)

"""Randomly initialised checkpoints, for tests and benchmarks only: nothing of the product imports this file."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.catalog import ModelEntry, describe
from model.checkpoint import Checkpoint, save
from model.encoders import build_conditioners
from model.importers.sgm import Networks
from model.presets import Preset
from model.shapes import VAE_STRIDE
from model.tasks import TaskSpec
from model.unet import build_unet
from model.vae import build_vae, upcast_encoder


def build_random(
    folder: Path, preset: Preset, task: TaskSpec, seed: int = 0, num_frames: int | None = None
) -> ModelEntry:
    """Save a randomly initialised checkpoint of a preset: for tests and benchmarks, never for users.

    A process builds each once; another of the same arguments is a copy, and leaves torch's generator as building would.

    Args:
        num_frames: the clip length it is made for; the preset's own when left out.
    """
    built, generator_state = _build(preset, task, seed, num_frames)
    shutil.copytree(built, folder, dirs_exist_ok=True)
    torch.set_rng_state(generator_state)
    return describe(folder)


@cache
def _build(preset: Preset, task: TaskSpec, seed: int, num_frames: int | None) -> tuple[Path, Tensor]:
    """The checkpoint's folder, removed at exit, and the state of torch's generator when it was made."""
    folder = Path(tempfile.mkdtemp(prefix="stillmotion-random-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
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
    return folder, torch.get_rng_state()


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
        identity="",
        num_frames=(preset.num_frames,),
        height=preset.height,
        width=preset.width,
        unit=VAE_STRIDE * 2 ** (len(preset.unet.channels) - 1),
        defaults={},
    )
    return Checkpoint(entry, unet, vae, conditioners, preset.noise)


def stability_weights(networks: Networks) -> dict[str, Tensor]:
    """What a single file under Stability's names holds for networks with these weights: `adapt`, backwards."""
    stacks: dict[str, dict[int, Tensor]] = {}
    weights: dict[str, Tensor] = {}
    for network, sources in networks.parts():
        for name, weight in network.state_dict().items():
            source = sources[name]
            if source.part is not None:
                stacks.setdefault(source.key, {})[source.part] = weight
            elif source.how == "as-linear":
                weights[source.key] = weight[:, :, None, None].contiguous()
            else:
                weights[source.key] = weight.T.contiguous() if source.how == "transposed" else weight.contiguous()
    return weights | {key: torch.cat([parts[part] for part in range(3)]) for key, parts in stacks.items()}


def save_single_file(folder: Path, file: Path, preset: Preset) -> None:
    """Write the weights of a published folder as one file under Stability's names, in their dtype.

    Args:
        preset: its sizes.
    """
    networks = Networks.build(preset)
    for name, network in (("unet", networks.unet), ("vae", networks.vae), ("image_encoder", networks.encoder)):
        weights = load_file(next((folder / name).glob("*.safetensors")))
        cast(nn.Module, network).load_state_dict(weights, strict=True, assign=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(stability_weights(networks), file, {"format": "pt"})

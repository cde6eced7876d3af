"""From finished runs to networks, and from networks to a released checkpoint folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from model.checkpoint import save
from model.conditioners import VisionTower
from model.errors import DataError
from model.presets import preset
from model.rewrites import skip_zero_branches, temporal_convolutions
from model.tasks import task
from model.unet import build_unet
from model.vae import build_vae
from training.card import CURVE, plot_curves
from training.config import ImageEncoderConfig
from training.motion import MotionMap
from training.objectives.contrastive import CLIP_MEAN, CLIP_STD, Towers
from training.recipes import RECIPES


def run_config(folder: Path) -> dict[str, Any]:
    """The config a run was made with.

    Raises:
        DataError: no run lies there.
    """
    path = folder / "config.json"
    if not path.exists():
        raise DataError(f"{folder} holds no run: train it first")
    return cast(dict[str, Any], json.loads(path.read_text()))


def averaged(module: nn.Module, folder: Path) -> nn.Module:
    """The module with a run's averaged weights, frozen, in evaluation mode.

    Raises:
        DataError: the run has no state.
    """
    start_from(module, folder)
    return module.eval().requires_grad_(False)


def start_from(module: nn.Module, folder: Path) -> None:
    """Give the module a run's averaged weights; it trains on as before.

    Raises:
        DataError: the run has no state.
    """
    path = folder / "state.pt"
    if not path.exists():
        raise DataError(f"{folder} holds no run: train it first")
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name in state["ema"]:
                p.copy_(state["ema"][name])


def trained_vae(folder: Path) -> AutoencoderKLTemporalDecoder:
    """The autoencoder of a run."""
    vae = build_vae(preset(run_config(folder)["preset"]))
    temporal_convolutions(cast(nn.Module, vae))
    averaged(cast(nn.Module, vae), folder)
    skip_zero_branches(cast(nn.Module, vae))
    return vae


def trained_towers(folder: Path) -> tuple[Towers, CLIPTokenizer]:
    """Both contrastive towers of a run, and the tokenizer that lies beside them."""
    values = run_config(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    config = dataclasses.replace(cast(ImageEncoderConfig, RECIPES["mini-image-encoder"]()), preset=values["preset"])
    return cast(Towers, averaged(Towers(config, tokenizer), folder)), tokenizer


def trained_image_encoder(folder: Path) -> CLIPVisionModelWithProjection:
    """The image tower of a contrastive run."""
    return trained_towers(folder)[0].image


def runs_summary(folders: dict[str, Path]) -> dict[str, Any]:
    """What a checkpoint records of each run it stands on: its length, its last loss, its config."""
    out: dict[str, Any] = {}
    for name, folder in folders.items():
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        out[name] = {"iterations": last["step"], "last_loss": round(last["loss"], 4), "config": run_config(folder)}
    return out


DEFAULTS: dict[str, Any] = {
    "fps": 6,
    "motion_bucket_id": 127,
    "noise_aug_strength": 0.02,
    "min_guidance_scale": 1.0,
    "max_guidance_scale": 2.0,
    "num_inference_steps": 6,
    "solver": "euler",
    "schedule": "karras",
    "decode_chunk_size": 7,
    "resize_mode": "crop",
}


def release(run: Path, folder: Path, latent_colours: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    """Write a denoiser run, with the networks it stands on, as a checkpoint folder in float16.

    Args:
        latent_colours: what previews are drawn with (training.latent_colours).
        defaults: request settings that the checkpoint prefers; `DEFAULTS` fills the rest.
    """
    values = run_config(run)
    out = run.parent
    size = preset(values["preset"])
    first = [values["init"]] if values["init"] else []
    folders = {name: out / name for name in (values["vae"], values["image_encoder"], *first, run.name)}
    unet = build_unet(size, task(values["task"]), num_frames=values["num_frames"])
    temporal_convolutions(cast(nn.Module, unet))
    sidecar = {
        "task": values["task"],
        "width": values["width"],
        "height": values["height"],
        "defaults": DEFAULTS | (defaults or {}),
        "latent_colours": latent_colours,
        "motion_map": dataclasses.asdict(MotionMap()),
        "runs": runs_summary(folders),
    }
    save(
        folder,
        unet=cast(Any, averaged(cast(nn.Module, unet), run)),
        vae=trained_vae(out / values["vae"]),
        conditioners=VisionTower(trained_image_encoder(out / values["image_encoder"]), CLIP_MEAN, CLIP_STD),
        noise=size.noise,
        sidecar=sidecar,
    )
    plot_curves(folders, folder / CURVE)


def release_text_encoder(run: Path, folder: Path) -> None:
    """Write the text tower of a contrastive run and its tokenizer, in float16."""
    towers, tokenizer = trained_towers(run)
    text: CLIPTextModelWithProjection = towers.text
    text.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)

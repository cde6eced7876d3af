"""From finished runs to networks, and from networks to a released checkpoint folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

from diffusers import AutoencoderKLTemporalDecoder
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from model.checkpoint import save
from model.conditioners import Conditioners, ImagePair, TextTower, VisionTower
from model.presets import preset
from model.rewrites import skip_zero_branches, temporal_convolutions
from model.tasks import TaskSpec, task
from model.vae import build_vae
from training.card import CURVE, plot_curves
from training.config import ImageEncoderConfig
from training.motion import MotionMap
from training.objectives.contrastive import CLIP_MEAN, CLIP_STD, Towers
from training.recipes import RECIPES
from training.runs import averaged, run_config
from training.starts import Denoiser, empty_network, unet_of


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


def trained_text_tower(folder: Path) -> TextTower:
    """The text tower of a contrastive run, without its projection."""
    towers, tokenizer = trained_towers(folder)
    encoder = CLIPTextModel(towers.text.config)
    weights = towers.text.text_model.state_dict()
    encoder.load_state_dict({name.removeprefix("text_model."): value for name, value in weights.items()})
    return TextTower(encoder.eval().requires_grad_(False), tokenizer)


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


PREFERRED: dict[str, dict[str, Any]] = {
    "image-to-video": {},
    "text-to-video": {"min_guidance_scale": 4.0, "max_guidance_scale": 4.0, "num_inference_steps": 12},
    "frame-interpolation": {"min_guidance_scale": 1.0, "max_guidance_scale": 1.0, "num_inference_steps": 4},
    "multi-view": {"min_guidance_scale": 1.0, "max_guidance_scale": 1.5, "num_inference_steps": 8, "elevation": 10.0},
}
"""What a mini checkpoint of a task prefers; DEFAULTS fills the rest."""


def release(run: Path, folder: Path, latent_colours: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    """Write a denoiser run, with the networks it stands on, as a checkpoint folder in float16.

    Args:
        latent_colours: what previews are drawn with (training.latent_colours).
        defaults: request settings that the checkpoint prefers, over `PREFERRED`.
    """
    values = run_config(run)
    out, spec = run.parent, task(values["task"])
    names = (values["vae"], values["image_encoder"], *_starts(out, values), run.name)
    folders = {name: out / name for name in names}
    network = averaged(empty_network(values), run)
    sidecar = {
        "task": spec.name,
        "width": values["width"],
        "height": values["height"],
        "defaults": DEFAULTS | PREFERRED[spec.name] | (defaults or {}),
        "latent_colours": latent_colours,
        "motion_map": dataclasses.asdict(MotionMap()),
        "runs": runs_summary(folders),
    }
    save(
        folder,
        unet=unet_of(network),
        vae=trained_vae(out / values["vae"]),
        conditioners=_conditioners(spec, network, out / values["image_encoder"]),
        noise=preset(values["preset"]).noise,
        sidecar=sidecar,
    )
    plot_curves(folders, folder / CURVE)


def _starts(out: Path, values: dict[str, Any]) -> list[str]:
    """The runs that a run's weights went through before it, the earliest first."""
    found: list[str] = []
    while values.get("init") and (out / values["init"] / "config.json").exists():
        found.insert(0, values["init"])
        values = run_config(out / values["init"])
    return found


def _conditioners(spec: TaskSpec, network: nn.Module, towers: Path) -> Conditioners:
    """What reads the task's requests."""
    if spec.context == "text":
        return trained_text_tower(towers)
    vision = VisionTower(trained_image_encoder(towers), CLIP_MEAN, CLIP_STD)
    return ImagePair(vision, network.mask.detach()) if isinstance(network, Denoiser) else vision


def release_text_encoder(run: Path, folder: Path) -> None:
    """Write the text tower of a contrastive run and its tokenizer, in float16."""
    towers, tokenizer = trained_towers(run)
    text: CLIPTextModelWithProjection = towers.text
    text.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)

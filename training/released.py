"""From finished runs to networks, and from networks to a released checkpoint folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn
from transformers import CLIPTextModelWithProjection

from model.catalog import SIDECAR
from model.checkpoint import save
from model.conditioners import Conditioners, ImagePair
from model.presets import Preset, preset
from model.tasks import TaskSpec, task
from training.card import CURVE, plot_curves
from training.frozen import frozen_text, frozen_vae, frozen_vision, trained_towers
from training.motion import MotionMap
from training.named import find, is_run, place, version_of
from training.runs import averaged, run_config
from training.shared import split
from training.starts import Denoiser, empty_network, unet_of


def runs_summary(folders: dict[str, Path]) -> dict[str, Any]:
    """What a checkpoint records of each run it stands on: its length, its last loss, its config, its dataset."""
    out: dict[str, Any] = {}
    for name, folder in folders.items():
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        out[name] = {"iterations": last["step"], "last_loss": round(last["loss"], 4), "config": run_config(folder)}
        if (folder / "data.json").exists():  # runs from before it was kept have none
            data = json.loads((folder / "data.json").read_text())
            out[name]["data"] = {"name": data["name"], "sha256": data["sha256"]}
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
    "frame-interpolation": {"min_guidance_scale": 1.0, "max_guidance_scale": 1.0, "num_inference_steps": 2},
    "multi-view": {"min_guidance_scale": 2.0, "max_guidance_scale": 4.0, "num_inference_steps": 12, "elevation": 10.0},
}
"""What a mini checkpoint of a task prefers; DEFAULTS fills the rest."""


FRAME_NOISE = 32.0
"""A mini interpolation's (model.held): of 8, 16 and 32, the best mean PSNR on 40 clips of its training footage."""


def release(run: Path, folder: Path, latent_colours: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    """Write a denoiser run, with the networks it stands on, as a checkpoint folder in float16.

    Args:
        latent_colours: what previews are drawn with (training.latent_colours).
        defaults: request settings that the checkpoint prefers, over `PREFERRED`.
    """
    values = run_config(run)
    spec, size = task(values["task"]), preset(values["preset"])
    stands_on = {name: find(values[name], run.parent, name) for name in ("vae", "image_encoder")}
    starts = _starts(run.parent, values)
    folders = {path.name: path for path in (*stands_on.values(), *starts, run) if is_run(path)}
    sources = stands_on | ({"init": starts[0]} if starts else {})
    published = {name: path for name, path in sources.items() if not is_run(path)}
    network = averaged(empty_network(values), run)
    sidecar = {
        "task": spec.name,
        "width": values["width"],
        "height": values["height"],
        "defaults": DEFAULTS | PREFERRED[spec.name] | (defaults or {}),
        "latent_colours": latent_colours,
        "motion_map": dataclasses.asdict(MotionMap()),
        **({"frame_noise": FRAME_NOISE} if spec.holds_ends else {}),
        "runs": {run: told for path in published.values() for run, told in _earlier_runs(path).items()}
        | runs_summary(folders),
        "published_weights": {
            name: {"name": path.name, "version": version_of(path)} for name, path in published.items()
        },
    }
    save(
        folder,
        unet=unet_of(network),
        vae=frozen_vae(stands_on["vae"], size),
        conditioners=_conditioners(spec, network, stands_on["image_encoder"], size),
        noise=size.noise,
        sidecar=sidecar,
    )
    split(folder / "vae")
    plot_curves(folders, folder / CURVE)
    if "init" in published and (published["init"] / CURVE).exists():
        _put_above(published["init"] / CURVE, folder / CURVE)


def _earlier_runs(path: Path) -> dict[str, Any]:
    """The runs that a checkpoint of ours, taken as published weights, itself stands on."""
    sidecar = path / SIDECAR
    return dict(json.loads(sidecar.read_text()).get("runs", {})) if sidecar.exists() else {}


def _put_above(earlier: Path, curve: Path) -> None:
    """The curves of the start above those of the runs since."""
    with Image.open(earlier) as top, Image.open(curve) as bottom:
        both = Image.new("RGB", (max(top.width, bottom.width), top.height + bottom.height), "white")
        both.paste(top.convert("RGB"), (0, 0))
        both.paste(bottom.convert("RGB"), (0, top.height))
    both.save(curve)


def _starts(out: Path, values: dict[str, Any]) -> list[Path]:
    """What a run's weights went through before it, the earliest first, as far as it is still there."""
    found: list[Path] = []
    while values.get("init") and (path := place(values["init"], out)) is not None and path not in found:
        found.insert(0, path)
        values = run_config(path) if is_run(path) else {}
    return found


def _conditioners(spec: TaskSpec, network: nn.Module, towers: Path, size: Preset) -> Conditioners:
    """What reads the task's requests."""
    if spec.context == "text":
        return frozen_text(towers, size)
    vision = frozen_vision(towers, size)
    return ImagePair(vision, network.mask.detach()) if isinstance(network, Denoiser) else vision


def release_text_encoder(run: Path, folder: Path) -> None:
    """Write the text tower of a contrastive run and its tokenizer, in float16."""
    towers, tokenizer = trained_towers(run)
    text: CLIPTextModelWithProjection = towers.text
    text.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)

"""A finished run as a checkpoint folder that the service and diffusers load.

Beside the networks it holds the linear map from latents to colours that previews are drawn with (least squares on
training footage), and the autoencoder's weights in two shards with an index, as diffusers and transformers know them:
the late layers that a fitted decoder has of its own, and the rest. Checkpoints of one encoder hold the rest in
identical files, which a store that knows contents keeps once.

Legend: N latent cells, C latent channels.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from model.catalog import SIDECAR
from model.checkpoint import save
from model.encoders import Conditioners, ImagePairEncoder
from model.errors import DataError
from model.presets import Preset, preset
from model.shapes import VAE_STRIDE
from model.sources.denoiser_file import FEW_STEPS
from model.sources.hub import repository_name
from model.tasks import TaskSpec, task
from training.data.latents import LatentClip
from training.data.motion_bucket import MotionMap
from training.frozen_networks import frozen_text, frozen_vae, frozen_vision, trained_towers
from training.initial_weights import Denoiser, empty_network, unet_of
from training.model_card import CURVE, plot_curves
from training.objectives.decoder import LATE_LAYERS
from training.runs import averaged, is_run, locate, resolve_source, run_config, version_of

_CELLS = 50_000


def fit_latent_colours(clips: list[LatentClip], scaling_factor: float) -> dict[str, list[object]]:
    """What a checkpoint's sidecar names `latent_colours`: weights [C][3] and bias [3].

    The target of a latent cell is the mean colour, in [-1, 1], of the pixels it stands for.

    Args:
        clips: frames with their latents, unscaled.
        scaling_factor: of the autoencoder, since previews are drawn from scaled latents.
    """
    latents = np.concatenate([_cells(clip) for clip in clips]) * scaling_factor
    colours = np.concatenate([_colours(clip) for clip in clips])
    every = max(1, len(latents) // _CELLS)
    design = np.concatenate([latents[::every], np.ones((len(latents[::every]), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(design, colours[::every], rcond=None)
    return {"weights": solution[:-1].round(5).tolist(), "bias": solution[-1].round(5).tolist()}


def _cells(clip: LatentClip) -> np.ndarray:
    """[N, C]: one frame's latents."""
    cells: np.ndarray = clip.latents[0].astype(np.float64).transpose(1, 2, 0).reshape(-1, clip.latents.shape[1])
    return cells


def _colours(clip: LatentClip) -> np.ndarray:
    """[N, 3]: the mean colour under each cell of the same frame."""
    frame = clip.clip.frames[0].astype(np.float64) / 127.5 - 1
    height, width = frame.shape[0] // VAE_STRIDE, frame.shape[1] // VAE_STRIDE
    blocks = frame.reshape(height, VAE_STRIDE, width, VAE_STRIDE, 3)
    colours: np.ndarray = blocks.mean(axis=(1, 3)).reshape(-1, 3)
    return colours


def split_vae_weights(vae: Path) -> None:
    """Turn the one weight file of an autoencoder's folder into two, the shared one first."""
    whole = vae / SAFETENSORS_WEIGHTS_NAME
    weights = load_file(whole)
    parts = (
        {name: value for name, value in weights.items() if not name.startswith(LATE_LAYERS)},
        {name: value for name, value in weights.items() if name.startswith(LATE_LAYERS)},
    )
    stem = whole.stem
    files = {f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors": part for number, part in enumerate(parts, 1)}
    for file, part in files.items():
        save_file(part, vae / file, metadata={"format": "pt"})
        (vae / file).chmod(whole.stat().st_mode)
    index = {
        "metadata": {"total_size": sum(map(_bytes, weights.values()))},
        "weight_map": {name: file for file, part in files.items() for name in part},
    }
    (vae / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    whole.unlink()


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def runs_summary(folders: dict[str, Path]) -> dict[str, Any]:
    """What a checkpoint records of each run it stands on: its length, its last loss, its config, its dataset."""
    out: dict[str, Any] = {}
    for name, folder in folders.items():
        logged = (folder / "log.jsonl").read_text().splitlines()
        if not logged:
            raise DataError(f"{folder} has logged no iteration: train longer, or set optim.log_every lower")
        last = json.loads(logged[-1])
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


RUN_DEFAULTS: dict[str, dict[str, Any]] = {
    "mini-image-to-video-pan": {"motion_bucket_id": 90, "max_guidance_scale": 1.0, "num_inference_steps": 4},
}
"""What a checkpoint of one recipe prefers, over its task's: a move that is known needs no guidance (docs/adr/0016)."""


FRAME_NOISE = 32.0
"""A mini interpolation's (end_frames): of 8, 16 and 32, the best mean PSNR on 40 clips of its training footage."""


def release(
    run: Path,
    folder: Path,
    latent_colours: dict[str, Any],
    defaults: dict[str, Any] | None = None,
    decay: float | None = None,
) -> None:
    """Write a denoiser run, with the networks it stands on, as a checkpoint folder in float16.

    Args:
        latent_colours: what previews are drawn with (training.release).
        defaults: request settings that the checkpoint prefers, over `PREFERRED`.
        decay: of the average that is written; the run's `ema_decay` where none is named.
    """
    values = run_config(run)
    spec, size = task(values["task"]), preset(values["preset"])
    stands_on = {name: resolve_source(values[name], run.parent, name) for name in ("vae", "image_encoder")}
    starts = _starts(run.parent, values)
    folders = {path.name: path for path in (*stands_on.values(), *starts, run) if is_run(path)}
    sources = stands_on | ({"init": starts[0]} if starts else {})
    published = {name: path for name, path in sources.items() if not is_run(path)}
    network = averaged(empty_network(values), run, decay)
    sidecar = {
        "task": spec.name,
        "width": values["width"],
        "height": values["height"],
        "defaults": DEFAULTS
        | PREFERRED.get(spec.name, {})
        | RUN_DEFAULTS.get(run.name, {})
        | distilled_defaults(values)
        | (defaults or {}),
        "latent_colours": latent_colours,
        "motion_map": dataclasses.asdict(MotionMap()),
        **({"frame_noise": FRAME_NOISE} if spec.restores_ends else {}),
        "runs": {run: summary for path in published.values() for run, summary in _earlier_runs(path).items()}
        | runs_summary(folders),
        "published_weights": {
            name: {"name": repository_name(path) or path.name, "version": version_of(path)}
            for name, path in published.items()
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
    split_vae_weights(folder / "vae")
    plot_curves(folders, folder / CURVE)
    if "init" in published and (published["init"] / CURVE).exists():
        _put_above(published["init"] / CURVE, folder / CURVE)


def distilled_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of a distillation prefers: solver `lcm` at the levels it was trained at, and no guidance.

    Args:
        values: the run's config.
    """
    if "distil" not in values:
        return {}
    return FEW_STEPS | {"num_inference_steps": values["distil"]["default_steps"]}


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
    starts: list[Path] = []
    while values.get("init") and (path := locate(values["init"], out)) is not None and path not in starts:
        starts.insert(0, path)
        values = run_config(path) if is_run(path) else {}
    return starts


def _conditioners(spec: TaskSpec, network: nn.Module, towers: Path, size: Preset) -> Conditioners:
    """What reads the task's requests."""
    if not spec.pictures:
        return frozen_text(towers, size)
    vision = frozen_vision(towers, size)
    return ImagePairEncoder.of(vision, network.mask.detach()) if isinstance(network, Denoiser) else vision


def release_text_encoder(run: Path, folder: Path) -> None:
    """Write the text tower of a contrastive run and its tokenizer, in float16."""
    towers, tokenizer = trained_towers(run)
    text: CLIPTextModelWithProjection = towers.text
    text.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)

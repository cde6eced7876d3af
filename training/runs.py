"""Finished runs and published weights as what another run builds on: a recipe's `init`, `vae` and `image_encoder`.

    OUT/NAME             a run of ours, or published weights that were put (or linked) there
    a path               the same, anywhere
    ORG/NAME             published weights of a model hub, @REVISION for a branch, tag or commit (model.sources.hub)

Of a run its config and its averaged weights are read. Published weights are a folder in diffusers' format (Stable
Diffusion, Stable Video Diffusion, a checkpoint of ours) or Stability's single file of Stable Video Diffusion.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from model.catalog import folder_version
from model.errors import DataError
from model.export_manifest import file_hash
from model.sources.hub import fetch, parse_hub_id

STATE = "state.pt"
SINGLE_FILE = ".safetensors"

PUBLISHED_NAMES = {
    "stable-diffusion-2-1": "Stable Diffusion 2.1 in diffusers' format, with unet/ and scheduler/",
    "svd-vae": "the autoencoder of Stable Video Diffusion (its folder in diffusers' format, or that folder's vae/; "
    "the vae/ of Stable Diffusion will do too)",
    "openclip-h": "a folder with text_encoder/ and tokenizer/ (Stable Diffusion 2.1's) for text, with image_encoder/ "
    "and feature_extractor/ (Stable Video Diffusion's) for pictures",
}
"""What the published recipes (training.recipes.published) name and no run of ours makes."""


def locate(name: str, out: Path) -> Path | None:
    """Where a name's run or weights lie, `out` first; None: nowhere."""
    return next((path for path in (out / name, Path(name)) if path.exists()), None)


def resolve_source(name: str, out: Path, setting: str) -> Path:
    """Where a name's run or weights lie.

    Args:
        out: the folder of runs.
        setting: which of a recipe's settings holds the name.

    Raises:
        DataError: nowhere; the message says what to put where.
        CheckpointError: a hub id that cannot be fetched.
    """
    if (path := locate(name, out)) is not None:
        return path
    if (hub_id := parse_hub_id(name)) is not None:
        return fetch(hub_id, "float32", to_serve=False)
    meant = PUBLISHED_NAMES.get(name)
    remedy = f"put or link {meant} there" if meant else f"train it first (stillmotion train {name} --out {out})"
    raise DataError(
        f"{out / name} does not exist: {remedy}, or name another with --set {setting}=PATH or a hub's ORG/NAME"
    )


def is_run(path: Path) -> bool:
    """Whether a run of ours lies there, begun at least."""
    config = path / "config.json"
    return (path / STATE).exists() or (config.exists() and "optim" in json.loads(config.read_text()))


def is_single_file(path: Path) -> bool:
    """Whether it is Stability's single file."""
    return path.is_file() and path.suffix == SINGLE_FILE


def version_of(path: Path) -> str:
    """First 12 hex digits of a hash over published weights, for a checkpoint's record of what it stands on."""
    return file_hash(path)[:12] if path.is_file() else folder_version(path)


def run_config(folder: Path) -> dict[str, Any]:
    """The config a run was made with.

    Raises:
        DataError: no run lies there.
    """
    path = folder / "config.json"
    if not path.exists():
        raise DataError(f"{folder} holds no run: train it first")
    return cast(dict[str, Any], json.loads(path.read_text()))


def averaged(module: nn.Module, folder: Path, decay: float | None = None) -> nn.Module:
    """The module with a run's averaged weights, frozen, in evaluation mode.

    Raises:
        DataError: the run has no state.
    """
    start_from(module, folder, decay)
    return module.eval().requires_grad_(False)


def start_from(module: nn.Module, folder: Path, decay: float | None = None) -> None:
    """Give the module a run's averaged weights; it trains on as before.

    Args:
        decay: of the average that is taken: the run's `ema_decay`, or one of its `other_emas`.

    Raises:
        DataError: the run has no state, no average of that decay, or its weights are of another network.
    """
    path = folder / STATE
    if not path.exists():
        raise DataError(f"{folder} holds no run: train it first")
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        module.load_state_dict(state["module"])
    except RuntimeError as error:
        raise DataError(f"{path} is of another network: {error}") from error
    average = _average(state, path, decay)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name in average:
                p.copy_(average[name])


def _average(state: dict[str, Any], path: Path, decay: float | None) -> dict[str, Any]:
    optim = state["config"]["optim"]
    if decay is None or decay == optim["ema_decay"]:
        return cast(dict[str, Any], state["ema"])
    others = dict(zip(optim.get("other_emas", ()), state.get("other_emas", ()), strict=True))
    if decay not in others:
        known = ", ".join(f"{one:g}" for one in (optim["ema_decay"], *others))
        raise DataError(f"{path} has no average of decay {decay:g}; it has {known}")
    return cast(dict[str, Any], others[decay])

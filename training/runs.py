"""Finished runs as starts: their config and their averaged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from model.errors import DataError


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
        DataError: the run has no state, or its weights are of another network.
    """
    path = folder / "state.pt"
    if not path.exists():
        raise DataError(f"{folder} holds no run: train it first")
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        module.load_state_dict(state["module"])
    except RuntimeError as error:
        raise DataError(f"{path} is of another network: {error}") from error
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name in state["ema"]:
                p.copy_(state["ema"][name])

"""Strict loading of a network from a folder in diffusers' format: every weight, or an error.

`from_pretrained` fills a weight that the folder lacks with random numbers, and says so only in a log; as the start of a
training that would go unseen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from model.errors import CheckpointError
from model.sources.layout import component_files

Network = TypeVar("Network")
_SHOWN = 5


def class_of(folder: Path) -> str:
    """The class that the config.json of a network's folder names.

    Raises:
        CheckpointError: there is none, or it names none.
    """
    path = folder / "config.json"
    try:
        return str(cast(dict[str, Any], json.loads(path.read_text()))["_class_name"])
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(
            f"{folder} holds no network of diffusers': {path.name}: {error}", param="model"
        ) from error


def load_strict(kind: type[Network], folder: Path) -> Network:
    """The network in float32, on the CPU, every weight out of the folder.

    Raises:
        CheckpointError: it does not load, or a weight is missing, of another shape, or known to no part of it.
    """
    variant = component_files(folder, "float32").variant or None
    try:
        network, problems = cast(Any, kind).from_pretrained(
            folder, local_files_only=True, torch_dtype=torch.float32, output_loading_info=True, variant=variant
        )
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{folder} does not load: {error}", param="model") from error
    for what, names in problems.items():
        if names:
            raise CheckpointError(f"{folder} has {what.replace('_', ' ')}: {some(map(str, names))}", param="model")
    if meta := [name for name, p in cast(nn.Module, network).named_parameters() if p.is_meta]:
        raise CheckpointError(f"{folder} has missing keys: {some(meta)}", param="model")
    return cast(Network, network)


def some(names: Any) -> str:
    """The first few of the names, and how many more there are."""
    listed = list(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

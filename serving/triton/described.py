"""A checkpoint's description on its way from a server to the gateway, which has no folder of it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.catalog import ModelEntry
from model.errors import CheckpointError
from model.lora.entry import LoraEntry
from model.params import Params
from model.tasks import TASKS


def entry_told(entry: ModelEntry) -> dict[str, Any]:
    """What the gateway needs of it, as JSON-ready values."""
    return {
        "name": entry.name,
        "task": entry.task.name,
        "version": entry.version,
        "num_frames": list(entry.num_frames),
        "height": entry.height,
        "width": entry.width,
        "unit": entry.unit,
        "defaults": entry.defaults,
        "exported": entry.exported,
        "fixed_size": entry.fixed_size,
        "previews": entry.previews,
        "loras": [asdict(one) | {"path": one.path.name} for one in entry.loras],
    }


def entry_of(told: Mapping[str, Any], place: str) -> ModelEntry:
    """The checkpoint a server told of; its path names the server, and no file.

    Raises:
        CheckpointError: it is of a task that is not known here, or not complete.
    """
    try:
        values = dict(told)
        values["task"] = TASKS[str(values["task"])]
        values["num_frames"] = tuple(values["num_frames"])
        values["loras"] = tuple(LoraEntry(**one | {"path": Path(place)}) for one in values.get("loras", ()))
        return ModelEntry(**values | {"path": Path(place)})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{place} serves a model that this version does not know: {error}") from error


def work(params: Params) -> tuple[float, int]:
    """How much a request is: pixels of its video, and evaluations of the denoiser (each one or two places wide)."""
    steps = params.num_inference_steps
    pixels = float(params.num_frames * params.height * params.width)
    return pixels, 2 * steps - 1 if params.solver == "heun" else steps

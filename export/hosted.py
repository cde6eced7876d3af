"""A checkpoint as it is in a model repository: torch runs its weights inside Triton. Nothing is traced or compiled."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from export.pipeline import warm_up_request
from export.repository import Installed, install
from export.triton_config import Instances
from model.catalog import PROFILE, ModelEntry
from model.errors import CheckpointError


def install_checkpoint(
    entry: ModelEntry,
    repository: Path,
    *,
    parameters: Mapping[str, str] | None = None,
    instances: Instances = Instances(),  # noqa: B008 - frozen
    keep: int = 3,
) -> Installed:
    """Install a copy of a checkpoint's folder as the next version of REPOSITORY/NAME.

    The version's checkpoint has the same version hash as the original, and makes the same videos.

    Args:
        parameters: engine settings by name (serving.triton.hosting), such as `dtype` or `deterministic`.
        instances: how many engines, and on what.
        keep: versions kept.

    Raises:
        CheckpointError: it is an export, which is in a repository already.
        StorageFull: the disk filled; nothing is installed.
    """
    if entry.exported:
        raise CheckpointError(f"{entry.path} is an export, and in a model repository already", param="model")

    def fill(folder: Path) -> None:
        shutil.copytree(entry.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(PROFILE, "model.py"))

    told = {"backend": "torch", "checkpoint_version": entry.version} | dict(parameters or {})
    return install(
        repository,
        entry.name,
        fill,
        keep=keep,
        parameters=told,
        warm_up=warm_up_request(entry),
        instances=instances,
    )

"""A Triton model repository: versions beside each other, installed atomically; config.pbtxt names the served one.

    REPO/NAME/config.pbtxt          which version is served, and its labels (export.triton_config)
    REPO/NAME/warmup/               what Triton sends before it calls the model ready
    REPO/NAME/1/ 2/ 3/              versions: export.json, onnx/, engines/, model.py, the checkpoint's small files

A version is written under a name Triton does not read (it begins with a dot) and renamed; then config.pbtxt is
replaced, in one rename too. A server that polls, or is sent a load request, takes the new one up.
"""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from export.triton_config import CONFIG, Instances, TritonConfig, WarmUp, check_config, instances_of, labels_of
from model.errors import CheckpointError, InvalidRequest, StorageFull
from model.export_manifest import MANIFEST, served_version

STABLE = "stable"
PREVIOUS = "previous"
MODEL_PY = '''"""What Triton's Python backend loads: stillmotion's engine."""

import sys
from pathlib import Path

# Triton puts this folder on the path, where this very file would hide the package `model`.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from serving.triton.model import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, slots=True)
class Installed:
    """A model of a repository: its versions, rising, and which of them is served."""

    folder: Path
    versions: tuple[int, ...]
    served: int
    labels: Mapping[str, int]


def installed(model: Path) -> Installed:
    """What REPO/NAME holds.

    Raises:
        CheckpointError: it is no model of a repository.
    """
    version = served_version(model)
    if version is None:
        raise CheckpointError(f"{model} is no model of a repository: it has no {CONFIG}", param="model")
    labels = labels_of(check_config((model / CONFIG).read_text()))
    return Installed(model, _versions(model), int(version.name), labels)


def install(
    repository: Path,
    name: str,
    fill: Callable[[Path], None],
    *,
    keep: int = 3,
    parameters: Mapping[str, str] | None = None,
    warm_up: Mapping[str, bytes] | None = None,
    instances: Instances | None = None,
) -> Installed:
    """Install what `fill` writes as the next version of REPO/NAME, and serve it.

    Args:
        fill: writes the version's files, an export's with its manifest or a checkpoint's, into the folder it is given;
            what it raises is raised, and nothing is installed.
        keep: versions kept, the served and the one before it always among them.
        parameters: for config.pbtxt.
        warm_up: the inputs of a warm-up request.
        instances: how many engines, and on what; None for those of the version before, at first one a GPU.

    Raises:
        InvalidRequest: `name` is no plain folder name, or `keep` below 1.
        StorageFull: the disk filled; nothing is installed.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise InvalidRequest(f"{name!r} is no name for a model folder", param="name")
    if keep < 1:
        raise InvalidRequest(f"keep must be at least 1, not {keep}", param="keep")
    model = repository / name
    before = installed(model) if (model / CONFIG).exists() else None
    with _full_disk_as_storage_full(repository), _staged(model) as part:
        fill(part)
        if not any((part / name).is_file() for name in (MANIFEST, "model_index.json")):
            raise CheckpointError(f"nothing to install: neither {MANIFEST} nor a checkpoint was written")
        (part / "model.py").write_text(MODEL_PY)
        version = _take_number(part, model)
        try:
            labels = {STABLE: version} | ({PREVIOUS: before.served} if before else {})
            requests = _write_warm_up(model, warm_up or {})
            instances = instances or _earlier_instances(model)
            _write_config(model, TritonConfig(name, version, labels, parameters or {}, instances, requests))
        except BaseException:
            shutil.rmtree(model / str(version), ignore_errors=True)
            raise
    _drop_old(model, keep)
    return installed(model)


def _earlier_instances(model: Path) -> Instances:
    """Those that the model's config.pbtxt has, which its operator may have set by hand; the default where it is new."""
    path = model / CONFIG
    return instances_of(check_config(path.read_text())) if path.exists() else Instances()


def roll_back(model: Path) -> Installed:
    """Serve the version before the one that is served; both stay installed.

    Raises:
        CheckpointError: no model of a repository, or no earlier version is installed.
    """
    now = installed(model)
    earlier = [version for version in now.versions if version < now.served]
    if not earlier:
        raise CheckpointError(f"{model} has no version before {now.served} to go back to", param="model")
    text = (model / CONFIG).read_text()
    config = check_config(text)
    parameters = {key: value.string_value for key, value in config.parameters.items() if not key.startswith("label.")}
    requests = tuple(
        WarmUp(request.name, {key: (value.input_data_file, value.dims[0]) for key, value in request.inputs.items()})
        for request in config.model_warmup
    )
    labels = {STABLE: max(earlier), PREVIOUS: now.served}
    back = TritonConfig(config.name, max(earlier), labels, parameters, instances_of(config), requests)
    _write_config(model, back)
    return installed(model)


@contextmanager
def _full_disk_as_storage_full(repository: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFull(f"{repository} is full; nothing was installed: free some space, export again") from error


@contextmanager
def _staged(model: Path) -> Iterator[Path]:
    """A folder inside the model's for a version to be written in; gone afterwards, and the model's too if empty."""
    part = model / f".{secrets.token_hex(6)}.part"
    try:
        part.mkdir(parents=True)
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if model.is_dir() and not any(model.iterdir()):
            model.rmdir()


def _take_number(part: Path, model: Path) -> int:
    """Rename the folder to the next version; another process may take a number at the same time."""
    while True:
        version = max(_versions(model), default=0) + 1
        try:
            part.rename(model / str(version))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return version


def _versions(model: Path) -> tuple[int, ...]:
    return tuple(sorted(int(path.name) for path in model.iterdir() if path.name.isdecimal() and path.is_dir()))


def _write_warm_up(model: Path, inputs: Mapping[str, bytes]) -> tuple[WarmUp, ...]:
    if not inputs:
        return ()
    (model / "warmup").mkdir(exist_ok=True)
    for name, content in inputs.items():
        (model / "warmup" / name).write_bytes(content)
    return (WarmUp("short", {name: (name, len(content)) for name, content in inputs.items()}),)


def _write_config(model: Path, config: TritonConfig) -> None:
    text = config.render()
    check_config(text)
    part = model / f".{CONFIG}.{secrets.token_hex(4)}"
    try:
        part.write_text(text)
        part.replace(model / CONFIG)
    finally:
        part.unlink(missing_ok=True)


def _drop_old(model: Path, keep: int) -> None:
    now = installed(model)
    retained = {now.served, *now.labels.values(), *now.versions[-keep:]}
    for version in set(now.versions) - retained:
        shutil.rmtree(model / str(version))

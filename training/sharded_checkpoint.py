"""Training states of sharded runs, by torch.distributed.checkpoint: each process writes and reads its own part.

    RUN/sharded/STEP/    the tensors, and plain.json: what else a state holds

`.metadata` is written last, so a folder without it was interrupted and does not count. Tensors have flat names
(`module/NAME`, `ema/NAME`, `other_emas/K/NAME`, `optimizer/INDEX/NAME`); they are read into whatever layout a run has
now, so it goes on with another number of processes. `merge` makes one file of them, as a run that is not sharded has.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from training.distributed import barrier, rank_and_size

FOLDER = "sharded"
_PARTS = ("module", "ema", "other_emas", "optimizer")
_PLAIN, _METADATA = "plain.json", ".metadata"
WRITING_ERRORS = (OSError, RuntimeError, CheckpointException)
"""What a full disk makes torch raise; CheckpointException is no Exception."""


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state's tensors under flat names, and the rest of it, which JSON can hold."""
    optimizer = state["optimizer"]
    parts = {"module": state["module"], "ema": state["ema"]}
    parts |= {f"other_emas/{k}": average for k, average in enumerate(state.get("other_emas", ()))}
    parts |= {f"optimizer/{index}": moments for index, moments in optimizer["state"].items()}
    tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    plain = {name: value for name, value in state.items() if name not in _PARTS}
    return tensors, plain | {"param_groups": optimizer["param_groups"]}


def unflatten(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The state that `flatten` took apart."""
    state: dict[str, Any] = {name: value for name, value in plain.items() if name != "param_groups"}
    whole: dict[str, dict[str, Tensor]] = {"module": {}, "ema": {}}
    numbered: dict[str, dict[int, dict[str, Tensor]]] = {"optimizer": {}, "other_emas": {}}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        if part in whole:
            whole[part][name] = value
        else:
            index, _, name = name.partition("/")
            numbered[part].setdefault(int(index), {})[name] = value
    averages = [average for _, average in sorted(numbered["other_emas"].items())]
    optimizer = {"state": numbered["optimizer"], "param_groups": plain["param_groups"]}
    return state | whole | {"optimizer": optimizer, "other_emas": averages}


def latest(run: Path) -> Path | None:
    """The newest complete sharded state of a run; None where there is none."""
    complete = sorted(path.parent for path in (run / FOLDER).glob(f"*/{_METADATA}"))
    return complete[-1] if complete else None


def save(run: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write the state of iteration `step`, then remove older ones; a collective call.

    Raises:
        OSError, RuntimeError, CheckpointException: it cannot be written; the state before is still there.
    """
    folder, first = run / FOLDER / f"{step:09d}", rank_and_size()[0] == 0
    tensors, plain = flatten(state)
    try:
        if first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / _PLAIN).write_text(json.dumps(plain))
        barrier()
        with _quiet():
            state_dict_saver.save(dict(tensors), checkpoint_id=folder)
    except WRITING_ERRORS:
        if first:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if first:
        for other in (run / FOLDER).iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)


def load(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read a sharded state; a collective call.

    Args:
        like: by flat name, a tensor whose layout and device the one read is to have; others are plain, on the CPU.
    """
    return _read(folder, like, no_dist=rank_and_size()[1] == 1)


def merge(folder: Path) -> dict[str, Any]:
    """The whole state on the CPU, read by one process alone."""
    return _read(folder, {}, no_dist=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that one process reads or writes alone, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _read(folder: Path, like: Mapping[str, Tensor], *, no_dist: bool) -> dict[str, Any]:
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {}
    for name, stored in metadata.items():
        if isinstance(stored, TensorStorageMetadata):
            own = like.get(name)
            if own is not None and own.shape == stored.size:
                tensors[name] = torch.empty_like(own)
            else:
                tensors[name] = torch.empty(stored.size, dtype=stored.properties.dtype)
    with _quiet():
        state_dict_loader.load(tensors, checkpoint_id=folder, no_dist=no_dist)
    return unflatten(tensors, plain_of(folder))


def plain_of(folder: Path) -> dict[str, Any]:
    """What a sharded state holds besides tensors: the iteration, the config."""
    plain: dict[str, Any] = json.loads((folder / _PLAIN).read_text())
    return plain


def remove(run: Path) -> None:
    """Remove a run's sharded states, once another one holds the same."""
    with suppress(OSError):
        shutil.rmtree(run / FOLDER)

"""Ray: imported only here and where it is needed, started quietly on this machine or joined, and always left again.

A manifest as a Ray Data source: one task reads it in order, never far ahead of what has been rendered.

Ray bounds what lies between reading and rendering by bytes, and rows are small: unbounded, a million of them would be
queued as objects within minutes. So the reader asks a gate, which the driver tells how many rows have ended.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset, ReadTask
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource

from model.errors import GenerationFailed, MissingExtra
from serving.engine.settings import usable_cores
from serving.offline.manifest import Manifest, Names, Portion, in_packets, read_lines
from serving.offline.rows import Reading

_OBJECT_STORE_BYTES = 200_000_000
"""Only rows and results pass through it; pictures and videos never do."""
_STARTS = 3
"""Ray gives a machine 30 s to start in, whatever else it is doing."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TQDM_PATCH_PRINT": "0",
    "RAY_worker_niceness": "0",  # of workers against their driver; by default 15
}


def load_ray() -> ModuleType:
    """The package `ray`, with `ray.data`.

    Raises:
        MissingExtra: it is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("pyarrow")  # first: what ray.data raises without it is no ModuleNotFoundError
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise MissingExtra("offline rendering", "batch") from error


@contextmanager
def cluster(address: str | None) -> Iterator[ModuleType]:
    """Ray, started on this machine or joined at an address; whoever started it before keeps it.

    Raises:
        MissingExtra: ray is not installed.
        GenerationFailed: nothing answers at the address.
    """
    ray = load_ray()
    if ray.is_initialized():
        yield ray
        return
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    stop = signal.getsignal(signal.SIGTERM)
    local = {"num_cpus": usable_cores(), "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    _begin(ray, address, {} if address else local)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)  # Ray puts a handler of its own in its place
    try:
        yield ray
    finally:
        ray.shutdown()


def _begin(ray: ModuleType, address: str | None, settings: dict[str, Any]) -> None:
    for left in reversed(range(_STARTS)):
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **settings)
            return
        except Exception as error:  # Ray raises plain ones
            ray.shutdown()
            if address is None and left:
                continue
            where = f"there is no Ray cluster at {address}" if address else "Ray does not start on this machine"
            raise GenerationFailed(f"{where}: {error}", code="no_cluster") from error


_COMPLETE_TOGETHER = 256
_LOOK_AGAIN_S = 0.2
_LINE = pa.struct(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("strict", pa.bool_()),
        ("text", pa.string()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("column", pa.string()),
    ]
)
_SCHEMA = pa.schema([("lines", pa.list_(_LINE))])
"""One row of it is a packet; run._quiet has Ray Data make a block of each row."""


class Gate:
    """An actor: how many rows have ended."""

    def __init__(self) -> None:
        self._ended = 0

    def tell(self, ended: int) -> None:
        """So many have."""
        self._ended = max(self._ended, ended)

    def ended(self) -> int:
        """How many have."""
        return self._ended


@dataclass(frozen=True)
class Feed:
    """What the reading task does; the same whenever it is done again.

    Were it to ask for itself which rows are complete, a second go would make other packets of the same rows, and Ray,
    which passes over as many as it had, would lose or repeat some.

    Args:
        done: Ray's reference to the Names of rows that were complete when the run began.
        gate: a handle of Gate.
        ahead: rows that may be read and not have ended.
    """

    manifest: Manifest
    portion: Portion
    reading: Reading
    done: Any
    gate: Any
    ahead: int

    def __call__(self) -> Iterator[pa.Table]:
        """Packets of rows."""
        done: Names = ray.get(self.done)
        read, room = 0, self.ahead
        for packet in in_packets(read_lines(self.manifest, self.portion, self.reading), done, _COMPLETE_TOGETHER):
            while read >= room:
                room = int(ray.get(self.gate.ended.remote())) + self.ahead
                if read >= room:
                    time.sleep(_LOOK_AGAIN_S)
            read += len(packet)
            yield pa.Table.from_pylist([{"lines": [asdict(line) for line in packet]}], _SCHEMA)


class ManifestSource(Datasource):  # type: ignore[misc]
    """Implements ray.data.Datasource."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known before it is read."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One, whatever parallelism is asked for: the rows' order tells which of two equal ones came first."""
        del parallelism, per_task_row_limit, data_context
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._feed, metadata)]


def read_manifest(feed: Feed) -> Dataset:
    """The rows of a manifest, lazily.

    Its CPUs are not those of a worker (serving.offline.rows): Ray Data makes one task of two that ask for the same, and
    the first worker would then be handed the whole manifest.
    """
    return ray.data.read_datasource(ManifestSource(feed), override_num_blocks=1, num_cpus=0)

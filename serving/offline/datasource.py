"""A manifest as a Ray Data source: one task reads it in order, never far ahead of what has been rendered.

Ray bounds what lies between reading and rendering by bytes, and rows are small: unbounded, a million of them would be
queued as objects within minutes. So the reader waits at a gate, to which the driver reports how many rows have ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset, ReadTask
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource

from serving.offline.manifest import NameSet, Portion, RenderList, in_packets, read_lines
from serving.offline.rows import RowContext

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

    manifest: RenderList
    portion: Portion
    reading: RowContext
    done: Any
    gate: Any
    ahead: int

    def __call__(self) -> Iterator[pa.Table]:
        """Packets of rows."""
        done: NameSet = ray.get(self.done)
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
        """One, whatever the parallelism requested: the rows' order decides which of two equal ones came first."""
        del parallelism, per_task_row_limit, data_context
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._feed, metadata)]


def read_manifest(feed: Feed) -> Dataset:
    """The rows of a manifest, lazily.

    Its CPUs are not those of a worker (serving.offline.rows): Ray Data makes one task of two that ask for the same, and
    the first worker would then be handed the whole manifest.
    """
    return ray.data.read_datasource(ManifestSource(feed), override_num_blocks=1, num_cpus=0)

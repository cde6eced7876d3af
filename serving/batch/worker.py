"""The actor that Ray starts for each GPU, or for the CPU: one engine on an event loop of its own, many rows in flight.

Ray calls it from several threads at once, a row a call, and the calls meet on the event loop, where the engine batches
their steps. So Ray retries, balances and reports single rows, while the engine never waits for a batch to fill or to
drain. (Ray Data's own way, an `async` function over the rows of one block, drains at the end of every block.)
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from serving.batch.lines import Line
from serving.batch.renderer import RowRenderer, Work
from serving.batch.result import Result
from serving.batch.rows import as_json, name_of
from serving.batch.tables import packed, results_table
from serving.engine.protocol import Engine


class Worker:
    """Called by Ray Data with tables of rows; answers with tables of results, one for each, in the same order.

    Args:
        work: what to do.

    Raises:
        CheckpointError: a checkpoint does not load here.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(2 * work.in_flight + 2, "stillmotion-io"))
        threading.Thread(target=self._loop.run_forever, name="stillmotion-rows", daemon=True).start()
        self._renderer = asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Render the rows; their columns are a request's fields."""
        return results_table(self._render([as_line(values) for values in rows.to_pylist()]))

    def _render(self, lines: list[Line]) -> list[Result]:
        return asyncio.run_coroutine_threadsafe(self._all(lines), self._loop).result()

    async def _begin(self) -> RowRenderer:
        renderer = RowRenderer(self._work, self._engine)
        await renderer.start()
        return renderer

    def _engine(self) -> Engine:
        from serving.engine.inprocess import InProcessEngine  # here: the driver has no use for torch

        return InProcessEngine(self._work.reading.entries, self._work.settings)

    async def _all(self, lines: list[Line]) -> list[Result]:
        return await asyncio.gather(*(self._renderer.render(line) for line in lines))


class PacketWorker(Worker):
    """Called with packets of a manifest's rows (serving.batch.source), answers with packets of results."""

    def __call__(self, packets: pa.Table) -> pa.Table:
        """Render the rows."""
        lines = [Line(**values) for packet in packets.column("lines").to_pylist() for values in packet]
        return packed(self._render(lines))


def as_line(values: dict[str, Any]) -> Line:
    """A row of a Ray Dataset, which has no number."""
    text = as_json(values)
    row_id = name_of(values.get("id")) or f"row-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return Line(0, row_id, False, text)

"""The Ray actor that renders rows: one engine on an event loop of its own, many rows in flight.

    read   the row, and whether it is complete already            here, at once
    fetch  its pictures, decoded                                  a thread
    make   encode, denoise, decode, mux                           the engine's lanes, batched
    write  thumbnail and video, then the record                   a thread

Only sampling runs on the step thread, and a row is complete once its record is written, not before.

Ray starts an actor for each GPU, or for the CPU, and calls it from several threads at once, a row a call; the calls
meet on the event loop, where the engine batches their steps. So Ray retries, balances and reports single rows, while
the engine never waits for a batch to fill or to drain. (Ray Data's own way, an `async` function over the rows of one
block, drains at the end of every block.)
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from model.errors import GenerationFailed, InvalidRequest, StillmotionError, StorageFull
from model.media.upscale import Upscalers
from serving.engine.protocol import CancelledAt, Completed, Engine, EngineRequest, Failed, Share
from serving.engine.settings import EngineSettings
from serving.interpolation.engine import ChainedEngine
from serving.jobs.artifacts import Artifacts
from serving.offline.manifest import Line
from serving.offline.output import ATTEMPTS, FAILURES, RECORDS, Output, PictureReader
from serving.offline.result_log import Result, failure, parse, success, thumbnail_name, video_name
from serving.offline.rows import RowContext, RowRequest, as_json, read_row, valid_row_id
from serving.provenance.video_manifest import finish

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)
_GONE: Final = frozenset({"engine_stopped", "engine_broken"})
_HOPELESS: Final = frozenset({"not_finite", StorageFull.code})
"""Failures that come again however often they are tried."""
STAGES: Final = ".stages"
"""The output's folder of what rows of several stages have made so far; each row's goes with its attempt."""
LOSSES: Final = 3
"""Workers that one row may take down in a run: after so many it is taken for the cause."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The configuration of a worker.

    Args:
        out: the output folder.
        settings: of its engine.
        in_flight: rows it works on at once.
        retries: how often a row that failed is tried again in a run.
        pause_s: before the first of them; doubled each time.
        run: names this run, to tell its attempts from those of runs before.
    """

    out: str
    reading: RowContext
    settings: EngineSettings
    in_flight: int
    retries: int = 2
    pause_s: float = 1.0
    pictures: PictureReader = field(default_factory=PictureReader)
    run: str = field(default_factory=lambda: uuid4().hex)


class RowRenderer:
    """Renders rows; as many at once as callers ask for, `in_flight` of them in work.

    Args:
        make_engine: called at the start, and again should an engine break; each result is started here.
    """

    def __init__(self, config: WorkerConfig, make_engine: Callable[[], Engine]) -> None:
        self._config = config
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._output = Output(config.out)
        self._room = asyncio.Semaphore(config.in_flight)
        self._reviving = asyncio.Lock()

    async def start(self) -> None:
        """Start the engine. Raises CheckpointError."""
        config = self._config
        upscalers = Upscalers(dict(config.reading.upscalers))
        made = self._make_engine()
        self._engine = ChainedEngine(made, self._between_stages(), config.reading.entries, upscalers)
        await self._engine.start()

    def _between_stages(self) -> Artifacts:
        """Where rows of several stages have what they have made so far."""
        return Artifacts.open(f"{self._config.out.rstrip('/')}/{STAGES}")

    async def stop(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            await self._engine.stop()

    async def render(self, line: Line) -> Result:
        """Bring one row to its end; an error of the row is its result, not raised."""
        request: RowRequest | None = None
        try:
            if line.fault is not None:
                return await self._failed(failure(line.row, line.id, line.fault))
            request = read_row(json.loads(line.text), self._config.reading, strict=line.strict)
            known = await self._known(line.row, request)
            if known is not None:
                return known
            async with self._room:
                return await self._try(line.row, request)
        except InvalidRequest as error:
            return await self._failed(failure(line.row, line.id, error))
        except Exception as error:  # noqa: BLE001 - the boundary: one row's surprise must not stop the others
            return failure(line.row, line.id if request is None else request.id, _expected(error), request)

    async def _known(self, row: int, request: RowRequest) -> Result | None:
        """The result of a row that is complete."""
        record = await asyncio.to_thread(self._output.get, f"{RECORDS}/{request.id}.json")
        if record is None:
            return None
        result = parse(record)
        if result.content == request.content:
            return replace(result, row=row)
        message = (
            f"{request.id} in {self._config.out} was made from another row or checkpoint; take another id or folder"
        )
        return failure(row, request.id, InvalidRequest(message, code="id_taken", param="id"), request)

    async def _try(self, row: int, request: RowRequest) -> Result:
        """Try a row until it is complete, is hopeless, or was tried often enough."""
        lost = await asyncio.to_thread(self._lost, request)
        marker, attempt, pause = f"{ATTEMPTS}/{request.id}.json", lost, self._config.pause_s
        if lost >= LOSSES:
            await asyncio.to_thread(self._output.remove, marker)
            return await self._failed(failure(row, request.id, _lost_with(lost), request, lost))
        while True:
            attempt += 1
            mark = json.dumps({"run": self._config.run, "lost": lost + 1}).encode()  # if nobody comes to remove it
            await asyncio.to_thread(self._output.put, marker, mark)
            try:
                result = await self._once(row, request, attempt)
            except Exception as error:  # noqa: BLE001 - a store that does not answer has errors of its own, and may again
                problem = _expected(error)
                if not _may_pass(problem) or attempt > lost + self._config.retries:
                    result = await self._failed(failure(row, request.id, problem, request, attempt))
                else:
                    _log.warning("row %d (%s) is tried again: %s", row, request.id, problem.message)
                    await asyncio.sleep(pause)
                    pause *= 2
                    continue
            await asyncio.to_thread(self._output.remove, marker)
            return result

    def _lost(self, request: RowRequest) -> int:
        """How many workers were lost over this row in this run."""
        mark = self._output.get(f"{ATTEMPTS}/{request.id}.json")
        if mark is None:
            return 0
        values = json.loads(mark)
        return int(values["lost"]) if values["run"] == self._config.run else 0

    async def _once(self, row: int, request: RowRequest, attempt: int) -> Result:
        began = time.perf_counter()
        pictures = await asyncio.to_thread(self._config.pictures.read, request.entry.task, request.pictures)
        fetched = time.perf_counter()
        completed = await self._make(request, pictures)
        timings = {"fetch": fetched - began, **completed.timings}
        return await asyncio.to_thread(self._keep, row, request, completed, pictures, attempt, timings)

    async def _make(self, request: RowRequest, pictures: tuple[bytes, ...]) -> Completed:
        engine, job_id = self._engine, f"{request.id}-{uuid4().hex[:8]}"
        assert engine is not None
        job = EngineRequest(
            job_id,
            request.entry.name,
            request.params,
            pictures,
            request.output_format,
            Share(priority="offline"),
            stages=request.stages,
        )
        try:
            async for event in engine.submit(job):
                if isinstance(event, Completed):
                    return event
                if isinstance(event, Failed):
                    if event.code in _GONE:
                        await self._revive(engine)
                    raise GenerationFailed(event.message, code=event.code)
                if isinstance(event, CancelledAt):
                    break
        finally:
            if request.stages:
                await asyncio.to_thread(self._between_stages().remove, job_id)
        raise GenerationFailed("the engine ended the row without a result")

    def _keep(
        self,
        row: int,
        request: RowRequest,
        completed: Completed,
        pictures: tuple[bytes, ...],
        attempt: int,
        timings: dict[str, float],
    ) -> Result:
        """Write the files and then the record; who comes second to the record keeps what is there."""
        record = f"{RECORDS}/{request.id}.json"
        finished = finish(completed, request.params, pictures, request.output_format)
        began = time.perf_counter()
        # A worker of a killed run may have lived to complete the row: its files are those that its record names.
        if (before := self._output.get(record)) is not None:
            return replace(parse(before), row=row)
        self._output.put(thumbnail_name(request), completed.thumbnail)
        self._output.put(video_name(request), finished.video)
        timings["write"] = time.perf_counter() - began
        result = success(row, request, completed, finished, attempts=attempt, timings=timings)
        if not self._output.put_once(record, result.as_json()):
            return replace(parse(self._output.get(record) or b"{}"), row=row)
        return result

    async def _failed(self, result: Result) -> Result:
        """Write a failure down, so that a person finds it; the next run tries the row again."""
        if result.error_code != StorageFull.code:
            await asyncio.to_thread(self._output.put, f"{FAILURES}/{result.id}.json", result.as_json())
        return result

    async def _revive(self, broken: Engine) -> None:
        """Another engine in place of one that broke; of the rows that notice, one does it."""
        async with self._reviving:
            if self._engine is broken:
                _log.warning("the engine broke; another is started")
                await broken.stop()
                await self.start()


def _expected(error: Exception) -> StillmotionError:
    """The error as one of ours; others by the name of their type."""
    if isinstance(error, StillmotionError):
        return error
    _log.error("an unexpected error", exc_info=error)
    return GenerationFailed(f"{type(error).__name__}: {error}", code="internal_error")


def _may_pass(error: StillmotionError) -> bool:
    """Whether trying again could help."""
    return isinstance(error, GenerationFailed) and error.code not in _HOPELESS


def _lost_with(count: int) -> GenerationFailed:
    message = f"{count} workers in turn were lost with this row in work; --in-flight 1 shows whether it is the cause"
    return GenerationFailed(message, code="worker_lost")


class Worker:
    """Called by Ray Data with tables of rows; answers with tables of results, one for each, in the same order.

    Args:
        work: what to do.

    Raises:
        CheckpointError: a checkpoint does not load here.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(2 * config.in_flight + 2, "stillmotion-io"))
        threading.Thread(target=self._loop.run_forever, name="stillmotion-rows", daemon=True).start()
        self._renderer = asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Render the rows; their columns are a request's fields."""
        from serving.offline.tables import results_table  # here: who reads a manifest has no use for pyarrow

        return results_table(self._render([as_line(values) for values in rows.to_pylist()]))

    def _render(self, lines: list[Line]) -> list[Result]:
        return asyncio.run_coroutine_threadsafe(self._all(lines), self._loop).result()

    async def _begin(self) -> RowRenderer:
        renderer = RowRenderer(self._config, self._engine)
        await renderer.start()
        return renderer

    def _engine(self) -> Engine:
        from serving.engine.inprocess import InProcessEngine  # here: the driver has no use for torch

        return InProcessEngine(self._config.reading.entries, self._config.settings)

    async def _all(self, lines: list[Line]) -> list[Result]:
        return await asyncio.gather(*(self._renderer.render(line) for line in lines))


class PacketWorker(Worker):
    """Called with packets of a manifest's rows (serving.offline.cluster), answers with packets of results."""

    def __call__(self, packets: pa.Table) -> pa.Table:
        """Render the rows."""
        from serving.offline.tables import packed

        lines = [Line(**values) for packet in packets.column("lines").to_pylist() for values in packet]
        return packed(self._render(lines))


def as_line(values: dict[str, Any]) -> Line:
    """A row of a Ray Dataset, which has no number."""
    text = as_json(values)
    row_id = valid_row_id(values.get("id")) or f"row-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return Line(0, row_id, False, text)

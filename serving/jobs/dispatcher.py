"""The dispatcher: hands waiting jobs to the engine as it has room, and writes down what becomes of them.

One asyncio task looks for work; one more per running job follows the engine's events. What a server leaves running
when it ends goes back to the queue at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import Final

from sqlalchemy.exc import OperationalError
from stillmotion.types import Job

from model.errors import GenerationFailed, InvalidRequest, StorageFull
from model.params import PARAMS
from model.tasks import TASKS
from serving.engine.protocol import (
    CancelledAt,
    Checkpointed,
    Completed,
    Decoded,
    Engine,
    EngineEvent,
    EngineRequest,
    Failed,
    PhaseStarted,
    Previewed,
    Queued,
    Stepped,
)
from serving.jobs.artifacts import Artifacts
from serving.jobs.bell import Bell, wait_heard
from serving.jobs.errors import JobNotFound
from serving.jobs.outcome import Outcome, store_result
from serving.jobs.progress import percent
from serving.jobs.records import Advance, LeasedJob, input_names
from serving.jobs.store import JobStore
from serving.jobs.threads import in_thread

_log = logging.getLogger(__name__)
QUEUE_TOPIC: Final = "queue"
"""The bell's topic for: there may be work."""
_LOOK_AGAIN_S: Final = 1.0


@dataclass(slots=True)
class _Run:
    """What is remembered of a running job between two events."""

    job: LeasedJob
    written_at: float = -math.inf


class Dispatcher:
    """Runs jobs.

    Args:
        engine: what serves them; started and stopped by its owner.
        store, artifacts: where they are kept.
        bell: rung for a job at every change, and by others under QUEUE_TOPIC when a job was queued.
        step_interval_s: progress within a phase is written at most this often.
    """

    def __init__(
        self, engine: Engine, store: JobStore, artifacts: Artifacts, bell: Bell, step_interval_s: float = 0.25
    ) -> None:
        self._engine = engine
        self._store = store
        self._artifacts = artifacts
        self._bell = bell
        self._interval = step_interval_s
        self._runs: dict[str, _Run] = {}
        self._to_stop: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Put interrupted jobs back, remove files no job owns, and begin to look for work."""
        for job in await in_thread(self._store.requeue_interrupted):
            _log.warning("job %s was interrupted; it is %s now", job.id, job.status)
        known = await in_thread(self._store.ids)
        for name in await in_thread(self._artifacts.sweep, known):
            _log.warning("removed the files of %s, which is no job", name)
        self._loop = asyncio.create_task(self._look_for_work(), name="dispatcher")

    async def stop(self) -> None:
        """Let go of every job; those unfinished are put back at the next start."""
        tasks = [*self._tasks, *([] if self._loop is None else [self._loop])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop = None

    def cancel(self, job_id: str) -> None:
        """Ask a running job to stop at the next step boundary; others are ignored."""
        if job_id in self._runs:
            self._to_stop.add(job_id)
            self._engine.cancel(job_id)

    async def _look_for_work(self) -> None:
        with self._bell.listen(QUEUE_TOPIC) as heard:
            while True:
                heard.clear()
                try:
                    await self._fill()
                except Exception:  # noqa: BLE001 - the boundary: without this loop nothing would run any more
                    _log.exception("no job could be taken from the queue; trying again")
                await wait_heard(heard, _LOOK_AGAIN_S)

    async def _fill(self) -> None:
        """Lease jobs until the engine is full or none waits."""
        while self._engine.ready and len(self._runs) < self._engine.capacity:
            job = await in_thread(self._store.lease)
            if job is None:
                return
            self._runs[job.id] = _Run(job)
            self._bell.ring(job.id)
            task = asyncio.create_task(self._run(self._runs[job.id]), name=job.id)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, run: _Run) -> None:
        """Follow one job to its end, whatever the end is."""
        job_id = run.job.id
        try:
            try:
                outcome = await self._follow(run)
            except GenerationFailed as error:
                outcome = Failed(error.code, error.message)
            except Exception:  # noqa: BLE001 - the boundary: one job's surprise must not stop the others
                _log.exception("job %s met an unexpected error", job_id)
                outcome = Failed("internal_error", "an unexpected error; the server's log has it under the job's id")
            if isinstance(outcome, Failed):
                self._engine.cancel(job_id)  # the engine may still be at it
            await self._settle(job_id, outcome)
        finally:
            del self._runs[job_id]
            self._to_stop.discard(job_id)
            self._bell.ring(QUEUE_TOPIC)

    async def _follow(self, run: _Run) -> Outcome:
        """Submit a job and note its progress; its terminal event, with a result's files already stored."""
        try:
            request = await self._request(run.job)
        except (FileNotFoundError, InvalidRequest, KeyError, TypeError) as error:
            _log.exception("job %s cannot be read back", run.job.id)
            return Failed("job_unreadable", f"the stored job cannot be read back: {error}")
        if run.job.id in self._to_stop:
            return CancelledAt(step=0, compute_s=0.0)
        async for event in self._engine.submit(request):
            if isinstance(event, Completed):
                return await in_thread(store_result, self._artifacts, request, event)
            if isinstance(event, (Failed, CancelledAt)):
                return event
            if run.job.id in self._to_stop:  # it may have been asked before the engine knew of the job
                self._engine.cancel(run.job.id)
            await self._note(run, event)
        raise GenerationFailed("the engine ended the job's events without a result")

    async def _request(self, job: LeasedJob) -> EngineRequest:
        settings = {name: value for name, value in job.params.items() if name != "output_format"}
        names = input_names(len(TASKS[job.task].pictures))
        images = tuple([await in_thread(self._artifacts.read, job.id, name) for name in names])
        return EngineRequest(job.id, job.model, PARAMS[job.task](**settings), images, job.output_format)

    async def _note(self, run: _Run, event: EngineEvent) -> None:
        """Write progress down: every phase, and within a phase the first, the last and one per interval."""
        match event:
            case Queued(position):
                name, whole = "queued", True
                change = Advance("queued", percent("queued"), engine_position=position)
            case PhaseStarted(phase):
                name, change, whole = "phase", Advance(phase, percent(phase)), True
            case Stepped(step, total, eta_s):
                name, change = "step", Advance("denoise", percent("denoise", step, total), step, eta_s)
                whole = step in (1, total)
            case Checkpointed() | Previewed():
                return
            case Decoded(frames, total):
                name, change, whole = "decode", Advance("decode", percent("decode", frames, total)), frames == total
            case _:
                raise TypeError(f"not a progress event: {event!r}")
        now = time.monotonic()
        if whole or now - run.written_at >= self._interval:
            run.written_at = now
            await in_thread(self._store.advance, run.job.id, name, change)
            self._bell.ring(run.job.id)

    async def _settle(self, job_id: str, outcome: Outcome) -> None:
        """Write the end down; a database that cannot be written now is tried until it can."""
        while True:
            try:
                await in_thread(self._end, job_id, outcome)
            except (OperationalError, StorageFull):
                _log.exception("the end of job %s cannot be stored yet", job_id)
                await asyncio.sleep(_LOOK_AGAIN_S)
                continue
            except JobNotFound:
                _log.warning("job %s was deleted while it ran", job_id)
            self._bell.ring(job_id)
            return

    def _end(self, job_id: str, outcome: Outcome) -> Job:
        if isinstance(outcome, Failed):
            return self._store.fail(job_id, outcome.code, outcome.message)
        if isinstance(outcome, CancelledAt):
            return self._store.stopped(job_id, outcome.step, outcome.compute_s)
        return self._store.complete(job_id, outcome)

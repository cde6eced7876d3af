"""Data parallelism: one engine a device behind the Engine protocol; each request goes where the least work is left.

With `serve --devices` each engine is a process (serving.engine.process). Not yet run on GPUs; tested with two processes
on a CPU as the devices.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from model.catalog import ModelEntry
from model.params import Params
from serving.engine.process import STOPPED, ProcessEngine
from serving.engine.protocol import TERMINAL, Engine, EngineEvent, EngineRequest, Failed, Stepped
from serving.engine.settings import EngineSettings, usable_cores
from serving.engine.stats import EngineStats, HasStats

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class AssignedJob:
    """A job on one of the engines; `left_s` as of `updated_at`."""

    engine: Engine
    left_s: float
    updated_at: float = field(default_factory=time.monotonic)

    def note(self, event: EngineEvent) -> None:
        """Its engine's newest estimate."""
        if isinstance(event, Stepped) and event.eta_s is not None:
            self.left_s, self.updated_at = event.eta_s, time.monotonic()

    def left(self) -> float:
        """Seconds left by now."""
        return max(0.0, self.left_s - (time.monotonic() - self.updated_at))


class DataParallelEngine:
    """Implements serving.engine.protocol.Engine with several engines that serve the same checkpoints.

    A job stays with one engine from its first event to its last; where that engine stops, the queue takes the job back,
    and it resumes on any of them.

    Args:
        engines: at least one.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = tuple(engines)
        self._jobs: dict[str, AssignedJob] = {}

    async def start(self) -> None:
        """Start all; returns once one serves and the others serve too or have failed.

        Raises:
            StillmotionError: none started; the first one's error.
        """
        outcomes = await asyncio.gather(*(engine.start() for engine in self._engines), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if len(errors) == len(outcomes):
            await self.stop()
            raise errors[0]
        for error in errors:
            _log.error("one of %d engines did not start: %s", len(outcomes), error)

    async def stop(self) -> None:
        """Stop all."""
        await asyncio.gather(*(engine.stop() for engine in self._engines))

    @property
    def ready(self) -> bool:
        """Whether one of them takes requests."""
        return any(engine.ready for engine in self._engines)

    @property
    def capacity(self) -> int:
        """Requests that those which are ready take in flight together."""
        return sum(engine.capacity for engine in self._engines if engine.ready)

    def stats(self) -> EngineStats | None:
        """Their counts together; None while none has any."""
        counts = [engine.stats() for engine in self._engines if isinstance(engine, HasStats)]
        return merged([one for one in counts if one is not None])

    def estimate(self, model: str, params: Params) -> float | None:
        """Seconds the request would take on the fastest of them, idle; None while unknown."""
        known = [engine.estimate(model, params) for engine in self._engines if engine.ready]
        return min((seconds for seconds in known if seconds is not None), default=None)

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """Take a request; its events, as they happen, until a terminal one."""
        engine = self._least_busy()
        if engine is None:
            yield Failed(STOPPED, "no engine is running")
            return
        job = AssignedJob(engine, engine.estimate(request.model, request.params) or 0.0)
        self._jobs[request.job_id] = job
        try:
            async for event in engine.submit(request):
                job.note(event)
                if isinstance(event, TERMINAL):  # its place is free before whoever follows the job learns of it
                    self._forget(request.job_id, job)
                yield event
        finally:
            self._forget(request.job_id, job)

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop at the next step boundary; unknown ids are ignored (it has ended)."""
        if job_id in self._jobs:
            self._jobs[job_id].engine.cancel(job_id)

    def _forget(self, job_id: str, job: AssignedJob) -> None:
        if self._jobs.get(job_id) is job:
            del self._jobs[job_id]

    def _least_busy(self) -> Engine | None:
        """Of those that take requests: one with room before one without, then the least work left, then the fewest."""

        def load(engine: Engine) -> tuple[bool, float, int]:
            own = [job for job in self._jobs.values() if job.engine is engine]
            return len(own) >= engine.capacity, sum(job.left() for job in own), len(own)

        return min((engine for engine in self._engines if engine.ready), key=load, default=None)


def engines_on(devices: Sequence[str], entries: Sequence[ModelEntry], settings: EngineSettings) -> DataParallelEngine:
    """An engine in a process of its own on each of the devices; they share this machine's CPU threads."""
    threads = settings.threads or max(1, usable_cores() // len(devices))
    each = [replace(settings, device=device, threads=threads) for device in devices]
    return DataParallelEngine([ProcessEngine(entries, one) for one in each])


def merged(counts: Sequence[EngineStats]) -> EngineStats | None:
    """The sum of several engines' counts; None for none."""
    if not counts:
        return None
    total = counts[0]
    for one in counts[1:]:
        sums: dict[str, Any] = {}
        for name in (one_field.name for one_field in fields(EngineStats)):
            left, right = getattr(total, name), getattr(one, name)
            sums[name] = dict(Counter(left) + Counter(right)) if isinstance(left, dict) else left + right
        total = replace(total, **sums)
    return total

"""An engine with somebody watching: the same protocol, with its events counted and traced on their way."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from serving.engine.protocol import (
    TERMINAL,
    CancelledAt,
    Completed,
    Engine,
    EngineEvent,
    EngineRequest,
    Failed,
    PhaseStarted,
    Stepped,
)
from serving.jobs.follower import ENGINE_STOPPED
from serving.observe.around import EngineAround
from serving.observe.metrics import Metrics
from serving.observe.traces import JobTrace, Traces

_ENDS: Final[dict[type[EngineEvent], str]] = {Completed: "completed", CancelledAt: "cancelled"}


class WatchedEngine(EngineAround):
    """An engine, its events counted and traced.

    Args:
        engine: what does the work.
        metrics, traces: where it is told.
        clock: seconds, monotonic.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, traces: Traces, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(engine)
        self._metrics = metrics
        self._traces = traces
        self._clock = clock

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """The engine's events, each counted before it is handed on."""
        watch = _Watch(request, self._metrics, self._traces.job(request.job_id, request.model), self._clock)
        async with self._events(request) as events:
            try:
                async for event in events:
                    watch.see(event)
                    yield event
            finally:
                watch.end("abandoned")


def _how(event: EngineEvent) -> str:
    """How a job ended; one that the engine let go of because it stops goes on later, and did not fail."""
    if isinstance(event, Failed):
        return "interrupted" if event.code == ENGINE_STOPPED else "failed"
    return _ENDS[type(event)]


@dataclass(slots=True)
class _Watch:
    """One job on its way through the engine."""

    request: EngineRequest
    metrics: Metrics
    trace: JobTrace
    clock: Callable[[], float]
    began: float | None = None
    phase: str | None = None
    phase_at: float = 0.0
    step_at: float | None = None
    estimate: tuple[float, float] | None = None
    """When the first estimate was given, and the seconds it said."""
    ended: bool = field(default=False)

    def see(self, event: EngineEvent) -> None:
        """Count an event."""
        now = self.clock()
        if isinstance(event, PhaseStarted):
            self._enter(event.phase, now)
        elif isinstance(event, Stepped):
            # The steps of a chained job's second stage come from many rows, and are not one after another.
            if self.step_at is not None and self.phase == "denoise":
                self.metrics.step_seconds.labels(self.request.model).observe(now - self.step_at)
            self.step_at = now
            if self.estimate is None and event.eta_s is not None:
                self.estimate = (now, event.eta_s)
        elif isinstance(event, TERMINAL):
            if isinstance(event, Completed) and self.estimate is not None:
                self._judge_estimate(now)
            self.end(_how(event))

    def end(self, how: str) -> None:
        """The job left the engine; told once."""
        if self.ended:
            return
        self.ended = True
        now = self.clock()
        self._leave(now)
        self.trace.end(how)
        self.metrics.jobs_ended.labels(self.request.model, how).inc()
        if self.began is not None:
            self.metrics.key_seconds.labels(self.request.share.tenant).inc(now - self.began)

    def _enter(self, phase: str, now: float) -> None:
        if self.began is None:
            self.began = now
            self.metrics.key_jobs.labels(self.request.share.tenant).inc()
        self._leave(now)
        self.phase, self.phase_at, self.step_at = phase, now, now if phase == "denoise" else None
        self.trace.enter(phase)

    def _leave(self, now: float) -> None:
        if self.phase is not None:
            self.metrics.phase_seconds.labels(self.request.model, self.phase).observe(now - self.phase_at)
            self.phase = None

    def _judge_estimate(self, now: float) -> None:
        if self.estimate is None:
            return
        given_at, promised = self.estimate
        took = now - given_at
        if took > 0:
            self.metrics.eta_error.labels(self.request.model).observe(abs(promised - took) / took)

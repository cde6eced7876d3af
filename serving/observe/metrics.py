"""Prometheus metrics: every name in one list, collectors read at a scrape, and the engine wrapper that counts events.

Dashboards and alert rules are checked against this list. One registry an app, so that two apps in one process do not
share counts. Labels are few and bounded: an API key is named by its public id, a route by its template.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

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
from serving.engine.stats import EngineStats, HasStats
from serving.engine.wrapper import EngineWrapper
from serving.jobs.admission import typical_seconds
from serving.jobs.database import Database
from serving.jobs.records import CLASSES
from serving.jobs.runner import ENGINE_STOPPED
from serving.jobs.tables import JobRow
from serving.observe.traces import JobTrace, Traces


class QueueCollector(Collector):
    """Jobs that have not ended, and since when the oldest waits; the same from every gateway on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        """Read them."""
        query = (
            select(JobRow.status, func.count(), func.min(JobRow.created_at))
            .where(JobRow.status.in_(("queued", "in_progress")))
            .group_by(JobRow.status)
        )
        with self._database.read() as session:
            by_status = {status: (count, oldest) for status, count, oldest in session.execute(query)}
        depth = GaugeMetricFamily("stillmotion_queue_jobs", "Jobs waiting and running", labels=["status"])
        for status in ("queued", "in_progress"):
            depth.add_metric([status], by_status.get(status, (0, None))[0])
        yield depth
        oldest = by_status.get("queued", (0, None))[1]
        age = 0.0 if oldest is None else max(0.0, time.time() - oldest)
        yield GaugeMetricFamily("stillmotion_queue_age_seconds", "How long the oldest waiting job waits", value=age)


class WorkCollector(Collector):
    """Seconds of compute that wait, by class: what to scale by. The same from every gateway on one database.

    A job whose time is not known yet counts as the mean of the others, or as recent jobs took.

    Args:
        waiting: reads the class and the seconds of each waiting job, priced by the measured profile; blocks.
        database: with the jobs.
    """

    def __init__(self, waiting: Callable[[], Sequence[tuple[int, float | None]]], database: Database) -> None:
        self._waiting = waiting
        self._database = database

    def collect(self) -> Iterator[Metric]:
        """Read them."""
        waiting = self._waiting()
        known = [seconds for _, seconds in waiting if seconds is not None]
        unknown_s = sum(known) / len(known) if known else 0.0
        if waiting and not known:
            with self._database.read() as session:
                unknown_s = typical_seconds(session)
        total = dict.fromkeys(CLASSES, 0.0)
        for priority, seconds in waiting:
            total[priority] += unknown_s if seconds is None else seconds
        family = GaugeMetricFamily(
            "stillmotion_queue_work_seconds",
            "Seconds of compute of the waiting jobs, on one device, by measured times",
            labels=["class"],
        )
        for priority, name in CLASSES.items():
            family.add_metric([name], total[priority])
        yield family


class EngineCollector(Collector):
    """The engine's readiness, and its counts where it has some."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Read them."""
        engine = self._engine
        yield GaugeMetricFamily("stillmotion_engine_ready", "1 while the engine is warm", value=int(engine.ready))
        yield GaugeMetricFamily("stillmotion_engine_capacity", "Jobs the engine takes at once", value=engine.capacity)
        stats = engine.stats() if isinstance(engine, HasStats) else None
        if stats is None:
            return
        yield _batch_rows(stats)
        for name, description, value in (
            ("stillmotion_denoise_seconds", "Seconds in denoiser calls", stats.denoise_s),
            ("stillmotion_decode_seconds", "Seconds decoding frames", stats.decode_s),
            ("stillmotion_denoiser_places", "Places used in denoiser calls; a guided job takes two", stats.batch_slots),
        ):
            yield CounterMetricFamily(name, description, value=value)
        encodings = CounterMetricFamily(
            "stillmotion_encodings", "Pictures and prompts encoded, or found encoded", labels=["kind", "outcome"]
        )
        for name, count in stats.encodings.items():
            encodings.add_metric(name.split(), count)
        yield encodings
        active = GaugeMetricFamily("stillmotion_engine_jobs", "Jobs in the engine", labels=["state"])
        active.add_metric(["waiting"], stats.waiting)
        active.add_metric(["active"], stats.active)
        yield active


def _batch_rows(stats: EngineStats) -> Metric:
    """Batch occupancy: how many jobs each denoiser call served."""
    buckets, below = [], 0
    for rows in range(1, max(stats.rows_per_call, default=1) + 1):
        below += stats.rows_per_call.get(rows, 0)
        buckets.append((f"{rows}.0", float(below)))
    buckets.append(("+Inf", float(below)))
    return HistogramMetricFamily(
        "stillmotion_batch_rows", "Jobs served by one denoiser call", buckets=buckets, sum_value=stats.rows_stepped
    )


_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_RATIOS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)


class Metrics:
    """The gateway's metrics."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "stillmotion_http_requests",
            "Answers, by route and status",
            ["method", "route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "stillmotion_http_request_seconds",
            "From the request's head to the answer's",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.rejected = Counter(
            "stillmotion_rejected", "Requests refused, by the error's code", ["code"], registry=registry
        )
        self.reuse = Counter(
            "stillmotion_reuse",
            "Submissions with `reuse`: answered with a finished job (reused), made anew (computed, no_seed)",
            ["outcome"],
            registry=registry,
        )
        self.jobs_ended = Counter(
            "stillmotion_jobs_ended", "Jobs that ended in the engine", ["model", "status"], registry=registry
        )
        self.step_seconds = Histogram(
            "stillmotion_step_seconds",
            "From one solver step of a job to its next, batched work included",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.phase_seconds = Histogram(
            "stillmotion_phase_seconds",
            "A job's time in each phase",
            ["model", "phase"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.eta_error = Histogram(
            "stillmotion_eta_error_ratio",
            "How far the first estimate of a job was off, over what it took",
            ["model"],
            buckets=_RATIOS,
            registry=registry,
        )
        self.key_jobs = Counter("stillmotion_key_jobs", "Jobs begun, by API key", ["key"], registry=registry)
        self.key_seconds = Counter(
            "stillmotion_key_seconds",
            "Seconds from a job's first phase to its end, by API key",
            ["key"],
            registry=registry,
        )

    def read_at_scrape(self, *collectors: Collector) -> None:
        """Add what is read when somebody asks rather than counted as it happens."""
        for collector in collectors:
            self.registry.register(collector)


_ENDS: Final[dict[type[EngineEvent], str]] = {Completed: "completed", CancelledAt: "cancelled"}


class InstrumentedEngine(EngineWrapper):
    """An engine, its events counted and traced.

    Args:
        engine: what does the work.
        metrics, traces: where events are recorded.
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
        recorder = _Watch(request, self._metrics, self._traces.job(request.job_id, request.model), self._clock)
        async with self._events(request) as events:
            try:
                async for event in events:
                    recorder.count(event)
                    yield event
            finally:
                recorder.end("abandoned")


def _outcome(event: EngineEvent) -> str:
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

    def count(self, event: EngineEvent) -> None:
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
            self.end(_outcome(event))

    def end(self, outcome: str) -> None:
        """The job left the engine; recorded once."""
        if self.ended:
            return
        self.ended = True
        now = self.clock()
        self._leave(now)
        self.trace.end(outcome)
        self.metrics.jobs_ended.labels(self.request.model, outcome).inc()
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

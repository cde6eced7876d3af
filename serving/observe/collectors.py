"""What a scrape reads as it is: the queue from the database, the batches from the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from serving.engine.protocol import Engine
from serving.engine.stats import EngineStats
from serving.jobs.database import Database
from serving.jobs.tables import JobRow


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
            found = {status: (count, oldest) for status, count, oldest in session.execute(query)}
        depth = GaugeMetricFamily("stillmotion_queue_jobs", "Jobs waiting and running", labels=["status"])
        for status in ("queued", "in_progress"):
            depth.add_metric([status], found.get(status, (0, None))[0])
        yield depth
        oldest = found.get("queued", (0, None))[1]
        age = 0.0 if oldest is None else max(0.0, time.time() - oldest)
        yield GaugeMetricFamily("stillmotion_queue_age_seconds", "How long the oldest waiting job waits", value=age)


@runtime_checkable
class Counted(Protocol):
    """An engine that counts what it does; one behind Triton leaves that to Triton's own metrics."""

    def stats(self) -> EngineStats | None:
        """Counts since the start; None while not started."""
        ...


class EngineCollector(Collector):
    """The engine's readiness, and its counts where it has some."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Read them."""
        engine = self._engine
        yield GaugeMetricFamily("stillmotion_engine_ready", "1 while the engine is warm", value=int(engine.ready))
        yield GaugeMetricFamily("stillmotion_engine_capacity", "Jobs the engine takes at once", value=engine.capacity)
        stats = engine.stats() if isinstance(engine, Counted) else None
        if stats is None:
            return
        yield _batch_rows(stats)
        for name, told, value in (
            ("stillmotion_denoise_seconds", "Seconds in denoiser calls", stats.denoise_s),
            ("stillmotion_decode_seconds", "Seconds decoding frames", stats.decode_s),
            ("stillmotion_denoiser_places", "Places used in denoiser calls; a guided job takes two", stats.places),
        ):
            yield CounterMetricFamily(name, told, value=value)
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

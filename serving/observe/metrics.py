"""What is counted, and under which name: the one list that dashboards and alert rules are checked against.

One registry an app, so that two apps in one process do not share counts. Labels are few and bounded: an API key is
named by its public id, a route by its template.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.registry import Collector

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
        self.jobs_ended = Counter(
            "stillmotion_jobs_ended", "Jobs that ended in the engine", ["model", "status"], registry=registry
        )
        self.step_seconds = Histogram(
            "stillmotion_step_seconds",
            "From one solver step of a job to its next, company included",
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

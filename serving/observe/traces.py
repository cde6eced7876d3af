"""Traces from an HTTP request through the phases of the job it made. Off by default; needs the [otel] extra.

A job runs long after the request that made it was answered, perhaps in another process. Its span is a child of the
request's where this process still remembers that one, and a trace of its own otherwise; both carry the job's id.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from model.errors import MissingExtra

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_REMEMBERED: Final = 10_000


class JobTrace(Protocol):
    """One job's way through the engine."""

    def enter(self, phase: str) -> None:
        """A phase begins; the one before it ends."""
        ...

    def end(self, outcome: str) -> None:
        """The job left the engine."""
        ...


class Traces(Protocol):
    """Where spans are recorded."""

    @contextmanager
    def request(self, method: str, route: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """A span for one HTTP request; what is put into the dict becomes its attributes at the end."""
        ...

    def remember(self, job_id: str) -> None:
        """The request that is being served now made this job."""
        ...

    def job(self, job_id: str, model: str) -> JobTrace:
        """A span for a job in the engine."""
        ...


class _NoJob:
    def enter(self, phase: str) -> None:
        """Nothing."""

    def end(self, outcome: str) -> None:
        """Nothing."""


class NoTraces:
    """Traces where none are wanted."""

    @contextmanager
    def request(self, method: str, route: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:  # noqa: ARG002
        """Nothing."""
        yield {}

    def remember(self, job_id: str) -> None:
        """Nothing."""

    def job(self, job_id: str, model: str) -> JobTrace:  # noqa: ARG002 - the protocol's
        """Nothing."""
        return _NoJob()


class OtelTraces:
    """Traces through OpenTelemetry.

    Args:
        tracer: of the application's provider.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._parents: OrderedDict[str, Any] = OrderedDict()

    @contextmanager
    def request(self, method: str, route: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """A server span, child of the caller's `traceparent` if there is one."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        attributes: dict[str, Any] = {}
        with self._tracer.start_as_current_span(f"{method} {route}", extract(headers), SpanKind.SERVER) as span:
            try:
                yield attributes
            finally:
                if "http.route" in attributes:  # the template, which only the router knew
                    span.update_name(f"{method} {attributes['http.route']}")
                span.set_attributes({"http.request.method": method, **attributes})

    def remember(self, job_id: str) -> None:
        """Keep the present span as the job's parent; the oldest are forgotten."""
        from opentelemetry.context import get_current

        self._parents[job_id] = get_current()
        while len(self._parents) > _REMEMBERED:
            self._parents.popitem(last=False)

    def job(self, job_id: str, model: str) -> JobTrace:
        """A span for the job, with one child a phase."""
        parent = self._parents.pop(job_id, None)
        attributes = {"stillmotion.job_id": job_id, "stillmotion.model": model}
        return _OtelJob(self._tracer, self._tracer.start_span("job", parent, attributes=attributes))


class _OtelJob:
    def __init__(self, tracer: Tracer, span: Any) -> None:
        self._tracer = tracer
        self._span = span
        self._phase: Any = None

    def enter(self, phase: str) -> None:
        """End the phase before and begin this one."""
        from opentelemetry.trace import set_span_in_context

        self._leave()
        self._phase = self._tracer.start_span(phase, set_span_in_context(self._span))

    def end(self, outcome: str) -> None:
        """End both spans."""
        self._leave()
        self._span.set_attribute("stillmotion.outcome", outcome)
        self._span.end()

    def _leave(self) -> None:
        if self._phase is not None:
            self._phase.end()
            self._phase = None


def otlp_traces() -> OtelTraces:
    """Traces sent by OTLP over HTTP, to where OpenTelemetry's own environment variables say.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise MissingExtra("tracing", "otel") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "stillmotion"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTraces(provider.get_tracer("stillmotion"))

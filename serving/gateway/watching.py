"""What is told of every request: a metric, a span, a log line. Plain ASGI, so that streams pass through untouched."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.observe.logs import ACCESS
from serving.observe.metrics import Metrics
from serving.observe.traces import Traces

_log = logging.getLogger(ACCESS)
_UNKNOWN: Final = "(none)"
"""The route of a request that met none: paths are the caller's words, and no label."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Watch:
    """Tells of each request once its answer begins.

    Args:
        metrics, traces: where it is told.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def send_watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._tell(scope, message["status"], time.perf_counter() - began, told)
            await send(message)

        with self._traces.request(scope["method"], scope["path"], Headers(scope=scope)) as told:
            await self._app(scope, receive, send_watched)

    def _tell(self, scope: Scope, status: int, seconds: float, told: dict[str, Any]) -> None:
        route = route_of(scope)
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds)
        if isinstance(refusal := scope.get("refusal"), str):
            self._metrics.rejected.labels(refusal).inc()
        request_id, key = scope.get("request_id"), scope.get("key_id")
        told |= {"http.route": route, "http.response.status_code": status, "stillmotion.request_id": request_id or ""}
        _log.info(
            "%s %s %d",
            scope["method"],
            scope["path"],
            status,
            extra={"route": route, "status": status, "ms": round(1000 * seconds, 1), "key": key},
        )


def route_of(scope: Scope) -> str:
    """The template of the route that served a request, such as `/jobs/{job_id}`."""
    route = scope.get("route")
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else _UNKNOWN

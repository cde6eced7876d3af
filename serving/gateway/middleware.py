"""ASGI middleware of every request: its id, the limit on its body, metrics, spans, the access log, and 500s.

Plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any, Final
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.gateway.errors import Problem, answer
from serving.observe.logs import ACCESS, REQUEST_ID
from serving.observe.metrics import Metrics
from serving.observe.traces import Traces

_log = logging.getLogger(__name__)
_ACCEPTABLE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_FORM: Final = "multipart/form-data"
HEAD: Final = "stillmotion.head"
"""The scope's key of a HEAD that is served as GET."""
CLIENT_CLOSED: Final = 499
"""The status in metrics and log of a request whose caller went away before the answer (nginx's number)."""


class RequestId:
    """Gives each request an id (the caller's own if it is plain), says it in every answer, and answers 500s."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if _ACCEPTABLE_ID.match(offered) else f"req_{uuid4().hex}"
        scope["request_id"] = request_id
        token = REQUEST_ID.set(request_id)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            _log.debug("request %s: the caller went away during the upload", request_id)
        except Exception:
            _log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise
            message = "an unexpected error; the server's log has it under this request_id"
            response = answer(request_id, 500, "internal_error", message)
            await response(scope, receive, send_with_id)
        finally:
            REQUEST_ID.reset(token)


class BodyLimit:
    """Refuses a body beyond the limit: by its declared length at once, otherwise as soon as too much has come.

    Starlette's own limit (`max_body_size`) answers in plain text where a route has not read the body; here every
    error has the one shape.

    What bodies take at once is bounded too, in memory (JSON) or in temporary files (forms), so that a crowd of large
    uploads fills neither: beyond it a request is answered with 503 and Retry-After.

    Args:
        limit: bytes.
        form_limit: of a multipart form, whose pictures are in memory only while they are decoded.
        total: bytes of all bodies of requests in progress.
        larger: limits of single paths, in place of `limit`.
        streamed: paths whose bodies are stored as they come, and so do not count towards `total`; forms do.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        form_limit: int,
        total: int,
        larger: Mapping[str, int],
        streamed: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._limit = limit
        self._form_limit = form_limit
        self._total = total
        self._larger = dict(larger)
        self._streamed = streamed
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_form = headers.get("content-type", "")[: len(_FORM)].lower() == _FORM
        limit = self._larger.get(scope["path"], self._form_limit if is_form else self._limit)
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            problem = _too_large(limit, is_form or scope["path"] in self._larger)
            response = answer(scope.get("request_id"), problem.status, problem.code, problem.message)
            await response(scope, receive, send)
            return
        received = held = 0
        counts = is_form or scope["path"] not in self._streamed

        async def receive_limited() -> Message:
            nonlocal received, held
            message = await receive()
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                received += size
                held += size * counts
                self._in_progress += size * counts
                if received > limit:
                    raise _too_large(limit, is_form or scope["path"] in self._larger)
                if counts and self._in_progress > self._total and received < self._in_progress:
                    raise Problem(
                        503,
                        "too_many_uploads",
                        "the server is busy with other uploads; send the request again in a while",
                        headers={"Retry-After": "5"},
                    )
            return message

        try:
            await self._app(scope, receive_limited, send)
        finally:
            self._in_progress -= held


def _too_large(limit: int, largest: bool) -> Problem:
    """`largest`: there is no larger limit for another kind of body."""
    advice = "send less at once" if largest else f"send a smaller picture, or a large one as {_FORM}"
    return Problem(413, "body_too_large", f"the request is larger than {limit} bytes; {advice}")


class HeadAsGet:
    """Answers HEAD as GET without its body (RFC 9110, section 9.3.2), for every route; a stream ends at its headers.

    Routes know by `is_head` that nobody will read the body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET", HEAD: True}

        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.start":
                return
            scope.update({name: inner[name] for name in ("route", "refusal", "key_id") if name in inner})
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(inner, receive, send_head)


def is_head(request: Request) -> bool:
    """Whether this GET was sent as HEAD."""
    return bool(request.scope.get(HEAD, False))


_access_log = logging.getLogger(ACCESS)
_UNKNOWN: Final = "(none)"
"""The route of a request that met none: paths are the caller's words, and no label."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class AccessLog:
    """Records each request once its answer begins: a metric, a span, a log line. Also those that failed.

    One whose caller went away before the answer counts as 499.

    Args:
        metrics, traces: where it is recorded.
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

        started = False

        async def send_recorded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._record(scope, message["status"], time.perf_counter() - began, attributes)
            await send(message)

        with self._traces.request(scope["method"], scope["path"], Headers(scope=scope)) as attributes:
            await self._app(scope, receive, send_recorded)
            if not started:
                self._record(scope, CLIENT_CLOSED, time.perf_counter() - began, attributes)

    def _record(self, scope: Scope, status: int, seconds: float, attributes: dict[str, Any]) -> None:
        route = route_of(scope)
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds)
        if isinstance(refusal := scope.get("refusal"), str):
            self._metrics.rejected.labels(refusal).inc()
        request_id, key = scope.get("request_id"), scope.get("key_id")
        attributes |= {
            "http.route": route,
            "http.response.status_code": status,
            "stillmotion.request_id": request_id or "",
        }
        _access_log.info(
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

"""What surrounds every request: its id, the limit on its body, and an answer even to the unforeseen.

Plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import logging
import re
from typing import Final
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.gateway.errors import Problem, answer
from serving.observe.logs import REQUEST_ID

_log = logging.getLogger(__name__)
_ACCEPTABLE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")


class RequestId:
    """Gives each request an id (the caller's own if it is plain), says it in every answer, and answers 500s."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _ACCEPTABLE_ID.match(asked) else f"req_{uuid4().hex}"
        scope["request_id"] = request_id
        here = REQUEST_ID.set(request_id)
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
        except Exception:
            _log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise
            message = "an unexpected error; the server's log has it under this request_id"
            response = answer(request_id, 500, "internal_error", message)
            await response(scope, receive, send_with_id)
        finally:
            REQUEST_ID.reset(here)


class BodyLimit:
    """Refuses a body beyond the limit: by its declared length at once, otherwise as soon as too much has come.

    Args:
        limit: bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limit:
            problem = self._too_large()
            response = answer(scope.get("request_id"), problem.status, problem.code, problem.message)
            await response(scope, receive, send)
            return
        seen = 0

        async def receive_limited() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._limit:
                    raise self._too_large()
            return message

        await self._app(scope, receive_limited, send)

    def _too_large(self) -> Problem:
        return Problem(413, "body_too_large", f"the request is larger than {self._limit} bytes; send a smaller picture")

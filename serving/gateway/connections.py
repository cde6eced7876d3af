"""Connection limits: slow or idle clients (slowloris), oversized headers, and connections per address.

uvicorn's protocol on httptools bounds none of these, and its h11 one only the size of headers. `LimitedProtocol` is
uvicorn's, with a bound on the size and time of a request's head, the rate of its body, the time a response may stall,
and the number of connections. One timer a second looks at all connections, so a request costs no timer of its own.
Where no connection is free, the one that has been idle longest makes room for a new one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
from collections import Counter
from functools import partial
from typing import Any, Final, Literal, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.gateway.settings import ConnectionLimits

_log = logging.getLogger(__name__)
_LOOK_S: Final = 1.0
_RATE_WINDOW_S: Final = 10.0
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 2**20
"""What is read, and dropped, of a refused request after the answer."""
_RESERVED_FILES: Final = 200
"""Descriptors that are no connections: the database, pictures and videos, webhooks."""
_HEADER_OVERHEAD: Final = 32
"""Bytes that each header counts besides name and value (RFC 9113, section 6.5.2), so that empty ones are not free."""
_STATUS: Final = {431: b"Request Header Fields Too Large", 408: b"Request Timeout", 503: b"Service Unavailable"}
Phase = Literal["idle", "head", "body", "response"]


def raise_file_limit() -> int:
    """Raise the process's soft limit on open files to its hard limit; the files it may open from then on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:  # macOS allows fewer than its hard limit says
            _log.warning("the limit of %d open files could not be raised: %s", soft, error)
            return soft
    return hard


class ConnectionRegistry:
    """The connections of one server, and the timer that closes those beyond the limits.

    Args:
        limits: on each, and on all.
        files: that the process may open.
    """

    def __init__(self, limits: ConnectionLimits, files: int) -> None:
        self.limits = limits
        self._most = max(1, min(limits.connections, files - _RESERVED_FILES))
        self._open: dict[LimitedProtocol, None] = {}  # in the order in which they became idle
        self._addresses: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._refused = 0

    def add(self, connection: LimitedProtocol) -> bool:
        """Count a new connection; False if there is no room for it, not even by closing an idle one."""
        address = connection.address
        crowded = self._addresses[address] >= self.limits.per_address
        if (crowded or len(self._open) >= self._most) and not self._close_idle(address if crowded else None):
            self._refused += 1
            return False
        self._open[connection] = None
        self._addresses[address] += 1
        if self._timer is None:
            self._timer = connection.loop.call_later(_LOOK_S, self._look, connection.loop)
        return True

    def remove(self, connection: LimitedProtocol) -> None:
        """Count a closed connection no more."""
        if connection not in self._open:
            return
        del self._open[connection]
        self._addresses[connection.address] -= 1
        if not self._addresses[connection.address]:
            del self._addresses[connection.address]

    def touch(self, connection: LimitedProtocol) -> None:
        """A connection became idle: it is now the last of the idle ones to be closed."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def _close_idle(self, address: str | None) -> bool:
        for connection in self._open:
            if connection.phase in ("idle", "head") and address in (None, connection.address):
                connection.transport.abort()
                self.remove(connection)
                return True
        return False

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._open):
            connection.check(now)
        if self._refused:
            _log.warning("%d connections were refused: all %d are busy", self._refused, len(self._open))
            self._refused = 0
        self._timer = loop.call_later(_LOOK_S, self._look, loop) if self._open else None


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol within limits.

    Args:
        registry: of the server's connections.
        kwargs: uvicorn's own.
    """

    def __init__(self, registry: ConnectionRegistry, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._registry = registry
        self.phase: Phase = "idle"
        self.address = ""
        self._since = 0.0
        self._head_bytes = 0  # of complete headers
        self._raw_bytes = 0  # of a head that is not complete
        self._body_bytes = 0
        self._stalled_since: float | None = None
        self._unsent = 0
        self._refused = False
        self._dropped = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, or close it at once."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._since = self.loop.time()
        if not self._registry.add(self):
            self._refuse(503, "too_many_connections", "all connections of this server are busy; try again in a while")

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        self._registry.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and refuse a head that is too long, finished or not."""
        if self._refused:
            self._dropped += len(data)
            if self._dropped > _LINGER_BYTES:
                self.transport.abort()
            return
        if self.phase == "idle":
            self._enter("head")
        began_head = self.phase == "head"
        super().data_received(data)
        if began_head and self.phase == "head":
            self._raw_bytes += len(data)
            self._check_head()

    def on_message_begin(self) -> None:
        """A request begins, which may be in the midst of what came."""
        super().on_message_begin()
        if self.phase != "head":
            self._enter("head")

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._head_bytes += len(url)
        self._check_head()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._head_bytes += len(name) + len(value) + _HEADER_OVERHEAD
        self._check_head()
        if not self._refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request goes to the application, unless it is refused."""
        if not self._refused:
            self._enter("body")
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._refused:
            self._body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is here."""
        if not self._refused:
            answered = self.cycle is None or self.cycle.response_complete
            self._enter("idle" if answered else "response")
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The response is sent; the connection may be used again."""
        if self.phase == "response" and not self.pipeline:
            self._enter("idle")
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than the response is made."""
        self._stalled_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self._stalled_since = None
        super().resume_writing()

    def check(self, now: float) -> None:
        """Close the connection if it has taken too long for what it does. `now`: the loop's time."""
        limits = self._registry.limits
        if self._refused:
            if now - self._since > _LINGER_S:
                self.transport.abort()
        elif self.transport.is_closing():
            if now - self._since > limits.stall_s:  # it does not even read our last answer
                self.transport.abort()
        elif self._stalled_since is not None:
            unsent = self.transport.get_write_buffer_size()
            if unsent < self._unsent:  # slowly, but it reads
                self._stalled_since = now
            elif now - self._stalled_since > limits.stall_s:
                self.transport.abort()
            self._unsent = unsent
        elif self.phase == "idle" and now - self._since > limits.head_s:
            self.transport.close()
        elif self.phase == "head" and now - self._since > limits.head_s:
            self._refuse(408, "head_timeout", f"the request's headers took longer than {limits.head_s:g} s")
        elif self.phase == "body" and now - self._since >= _RATE_WINDOW_S:
            # Where reading is paused, the server is the slow one.
            if not self.flow.read_paused and self._body_bytes < limits.body_bytes_per_s * (now - self._since):
                rate = f"{limits.body_bytes_per_s} bytes a second"
                self._refuse(408, "body_timeout", f"the request's body came more slowly than {rate}")
            self._since, self._body_bytes = now, 0

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._since = self.loop.time()
        self._head_bytes = self._raw_bytes = self._body_bytes = 0
        if phase == "idle":
            self._registry.touch(self)

    def _check_head(self) -> None:
        most = self._registry.limits.head_bytes
        if max(self._head_bytes, self._raw_bytes) > most and not self._refused:
            self._refuse(431, "headers_too_large", f"the request's headers have more than {most} bytes")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer, unless an answer has begun, and close the connection.

        What still comes is read and dropped for a while: closing with bytes unread would make the client's system
        drop our answer (RFC 9112, section 9.6).
        """
        self._refused = True
        self._since = self.loop.time()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            error = {"type": "invalid_request", "code": code, "message": message, "param": None, "request_id": None}
            body = json.dumps({"error": error}).encode()
            head = (
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head % (status, _STATUS[status], len(body)) + body)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.flow.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()


def limited_protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """What `uvicorn.Config(http=...)` takes: a protocol for each connection, all of one registry.

    Raises the process's limit on open files on the way.
    """
    protocol = partial(LimitedProtocol, ConnectionRegistry(limits, raise_file_limit()))
    return cast(type[asyncio.Protocol], protocol)  # uvicorn only calls it

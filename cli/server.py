"""Run an ASGI app under uvicorn until SIGINT or SIGTERM, with draining, and report when it is ready.

Imported only by `stillmotion serve`.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from model.errors import StillmotionError
from serving.gateway.connections import limited_protocol
from serving.gateway.settings import ConnectionLimits

LOOK_S = 0.05
"""Seconds between two looks at whether all is ready."""
BROKEN_POLL_S = 1.0
"""Seconds between two looks at whether the engine is broken."""
STOPPING_S = 15
"""Seconds that open requests have to end once the service is stopping."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        StillmotionError: the address is taken or not this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StillmotionError(f"cannot listen on {host}:{port} ({reason}); choose another --host or --port") from error


def run(
    app: FastAPI,
    listener: socket.socket,
    ready: Callable[[], bool],
    on_ready: Callable[[str], None],
    drain: Callable[[], Awaitable[None]] | None = None,
    broken: Callable[[], bool] = lambda: False,
    limits: ConnectionLimits | None = None,
    failure: Callable[[], str | None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then come back in good order.

    Args:
        ready: whether a request sent now is served at once.
        on_ready: called once, with the service's URL.
        drain: awaited at the first signal, while requests are still answered; a second signal cuts it short.
        broken: whether only a new process can serve again; asked once a second.
        limits: on connections.
        failure: why it can never be ready; the service then ends.

    Raises:
        StillmotionError: the service did not start, is broken, or failed before it was ready, with the reason.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=STOPPING_S,
        http=limited_protocol(limits or ConnectionLimits()),
        ws="none",
    )
    server = _Server(config, drain)
    cause: SystemExit | None = None
    ended_broken = False
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            ended_broken = runner.run(_serve(server, listener, ready, on_ready, broken, failure))
    except SystemExit as error:  # uvicorn's way to say that the app did not start
        cause = error
    if not server.started:
        raise StillmotionError("the service did not start; the log above says why") from cause
    if ended_broken:
        raise StillmotionError(
            "the engine broke; the log above says why. Start the service again: its jobs resume from their last "
            "checkpoints",
            code="engine_broken",
        )


async def _serve(
    server: uvicorn.Server,
    listener: socket.socket,
    ready: Callable[[], bool],
    on_ready: Callable[[str], None],
    broken: Callable[[], bool],
    failure: Callable[[], str | None],
) -> bool:
    """Serve to the end; whether that came because the service is broken."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not serving.done() and not (server.started and ready()) and failure() is None:
        await asyncio.sleep(LOOK_S)
    reason = failure()
    if reason is not None:
        server.should_exit = True
    elif not serving.done():
        on_ready(url_of(listener))
    ended_broken = False
    while not serving.done() and not ended_broken:
        await asyncio.wait({serving}, timeout=BROKEN_POLL_S)
        ended_broken = not serving.done() and broken()
    server.should_exit = server.should_exit or ended_broken
    await serving
    if reason is not None:
        raise StillmotionError(reason)
    return ended_broken


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached over HTTP."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Ends in good order on a signal, and then does not raise it again: the exit code is 0."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]] | None) -> None:
        super().__init__(config)
        self._drain = drain
        self._stop_requested = False
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note the first signal; end at once for the second, or where nothing is to be drained."""
        if self._drain is None or self._stop_requested:
            super().handle_exit(sig, frame)
        self._stop_requested = True

    async def on_tick(self, counter: int) -> bool:
        """Begin to drain once a stop was requested. Called ten times a second; True ends the service."""
        if self._stop_requested and self._drain is not None and self._draining is None:
            self._draining = asyncio.create_task(self._drain_then_end(self._drain), name="drain")
        return await super().on_tick(counter)

    async def _drain_then_end(self, drain: Callable[[], Awaitable[None]]) -> None:
        try:
            await drain()
        finally:
            super().handle_exit(signal.SIGTERM, None)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

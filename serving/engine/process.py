"""An engine in a process of its own: one for each GPU of a machine, which share no interpreter lock and fail apart.

The parent implements the Engine protocol over a pipe; the child runs an InProcessEngine. A child that ends by itself
(its device broke, the system killed it) ends its jobs as stopped, so that the queue resumes them from their last
checkpoints, and is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

from model.catalog import ModelEntry
from model.errors import GenerationFailed, InvalidRequest, StillmotionError
from model.params import Params
from serving.engine.profile import RequestRates
from serving.engine.protocol import Engine, EngineEvent, EngineRequest, Failed, event_stream
from serving.engine.settings import EngineSettings
from serving.engine.stats import EngineStats, HasStats, is_broken

_log = logging.getLogger(__name__)
STATUS_S: Final = 0.5
"""Seconds between two reports of a child."""
FIRST_RESTART_S: Final = 1.0
LONGEST_RESTART_S: Final = 60.0
"""Seconds before a child is started again: doubled each time, until one has served."""
_LAST_EVENTS_S: Final = 10.0
STOP_S: Final = 30.0
EXIT_S: Final = 5.0
"""Seconds in which a child closes its pipe, and then ends, before it is killed."""
_CLOSE: Final = object()
STOPPED: Final = "engine_stopped"
"""As serving.jobs.runner reads it: the job goes back into the queue."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What a child says of its engine."""

    ready: bool
    capacity: int
    rates: dict[str, RequestRates | None]
    stats: EngineStats | None


@dataclass(frozen=True, slots=True)
class StartFailure:
    """The child's engine did not start."""

    message: str
    code: str
    param: str | None


class PipeEnd:
    """One end of a pipe: messages leave in order from a thread of its own, and arrive on another.

    Args:
        receive: called with each message; with None once the other end is gone.
    """

    def __init__(self, connection: Connection, receive: Callable[[Any], None]) -> None:
        self._connection = connection
        self._receive = receive
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="stillmotion-pipe-out", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="stillmotion-pipe-in", daemon=True).start()

    def send(self, message: object) -> None:
        """Queue a message. What the other end is not there to read is dropped."""
        self._outbox.put(message)

    def close(self, wait_s: float = 0.0) -> None:
        """Send nothing after what is queued, and wait so long for that to be read."""
        self._outbox.put(_CLOSE)
        self._writer.join(wait_s)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the reader learns of the end
            while (message := self._outbox.get()) is not _CLOSE:
                self._connection.send(message)

    def _read(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                self._receive(self._connection.recv())
        self._receive(None)


class ProcessEngine:
    """Implements serving.engine.protocol.Engine.

    Args:
        entries: the checkpoints to serve.
        settings: device and limits.
        make: the child's engine; a function of a module, since it is named to the child.
    """

    def __init__(
        self,
        entries: Sequence[ModelEntry],
        settings: EngineSettings,
        make: Callable[[Sequence[ModelEntry], EngineSettings], Engine] | None = None,
    ) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._settings = settings
        self._make = make or in_process
        self._process: BaseProcess | None = None
        self._pipe: PipeEnd | None = None
        self._status: EngineStatus | None = None
        self._started: asyncio.Future[None] | None = None
        self._streams: dict[str, asyncio.Queue[EngineEvent]] = {}
        self._restarting: asyncio.Task[None] | None = None
        self._restart_s = FIRST_RESTART_S
        self._stopping = False
        self._gone = asyncio.Event()

    @property
    def device(self) -> str:
        """Where it works, for a log."""
        return self._settings.device

    @property
    def process_id(self) -> int | None:
        """Of the child; None where there is none now."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the child and load what is served.

        Raises:
            StillmotionError: the child's engine did not start.
        """
        self._stopping = False
        await self._launch()

    async def stop(self) -> None:
        """Stop the child's engine between two steps; jobs that have not ended end as stopped."""
        self._stopping = True
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        if self._pipe is not None:
            self._pipe.send(None)
        if self._process is not None:
            with contextlib.suppress(TimeoutError):  # its last events have arrived once its end of the pipe is closed
                await asyncio.wait_for(self._gone.wait(), STOP_S)
            await asyncio.to_thread(self._process.join, EXIT_S)
            if self._process.is_alive():
                self._process.kill()
                await asyncio.to_thread(self._process.join)
        self._process = self._pipe = self._status = None
        self._end_streams("the service stops")

    @property
    def ready(self) -> bool:
        """Whether the child has loaded its models and takes requests."""
        return self._status is not None and self._status.ready

    @property
    def capacity(self) -> int:
        """Requests in flight at once; 0 while there is no child."""
        return 0 if self._status is None else self._status.capacity

    def stats(self) -> EngineStats | None:
        """The child's counts as last reported; a new child counts from zero."""
        return None if self._status is None else self._status.stats

    def estimate(self, model: str, params: Params) -> float | None:
        """Seconds the request would take on the idle child, by the rates it reported; None while unknown."""
        rates = None if self._status is None else self._status.rates.get(model)
        return None if rates is None else rates.seconds(self._entries[model], params)

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """Take a request at once; its events until a terminal one. Closing the stream early cancels the job.

        Raises:
            InvalidRequest: the job id is already in flight.
        """
        if request.job_id in self._streams:
            raise InvalidRequest(f"job {request.job_id} is already in flight", param="job_id")
        events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        if self._pipe is None or not self.ready:
            events.put_nowait(Failed(STOPPED, f"the engine on {self.device} is not running"))
        else:
            self._streams[request.job_id] = events
            self._pipe.send(request)
        return event_stream(events, lambda ended: self._close_stream(request.job_id, events, ended))

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop at the next step boundary; unknown ids are ignored (it has ended)."""
        if self._pipe is not None and job_id in self._streams:
            self._pipe.send(job_id)

    def _close_stream(self, job_id: str, events: asyncio.Queue[EngineEvent], ended: bool) -> None:
        if not ended:
            self.cancel(job_id)
        if self._streams.get(job_id) is events:
            del self._streams[job_id]

    async def _launch(self) -> None:
        loop = asyncio.get_running_loop()
        started = self._started = loop.create_future()
        self._gone.clear()
        context = multiprocessing.get_context("spawn")  # a fork would have this process's threads and CUDA context
        mine, theirs = context.Pipe()
        arguments = (theirs, tuple(self._entries.values()), self._settings, self._make)
        process = context.Process(target=serve_pipe, args=arguments, name=f"engine {self.device}", daemon=True)
        await asyncio.to_thread(process.start)
        theirs.close()
        self._process = process

        def receive(message: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody follows anything any more
                loop.call_soon_threadsafe(self._receive, process, message)

        self._pipe = PipeEnd(mine, receive)
        await started

    def _receive(self, process: BaseProcess, message: Any) -> None:
        if process is not self._process:
            return
        started = self._started
        if isinstance(message, EngineStatus):
            self._status = message
            self._restart_s = FIRST_RESTART_S if message.ready else self._restart_s
            if started is not None and not started.done():
                started.set_result(None)
        elif isinstance(message, StartFailure):
            if started is not None and not started.done():
                started.set_exception(StillmotionError(message.message, code=message.code, param=message.param))
        elif message is None:
            self._lost()
        else:
            job_id, event = message
            if job_id in self._streams:
                self._streams[job_id].put_nowait(event)

    def _lost(self) -> None:
        """The child is gone."""
        if self._pipe is not None:
            self._pipe.close()
        self._status = self._pipe = None
        self._gone.set()
        self._end_streams("its process ended")
        if self._started is not None and not self._started.done():
            self._started.set_exception(GenerationFailed(f"the engine's process on {self.device} ended as it started"))
        elif not self._stopping and self._restarting is None:
            self._restarting = asyncio.get_running_loop().create_task(self._restart())

    def _end_streams(self, reason: str) -> None:
        for events in self._streams.values():
            events.put_nowait(Failed(STOPPED, f"the engine on {self.device} stopped: {reason}"))
        self._streams.clear()

    async def _restart(self) -> None:
        """Start a child until one serves."""
        try:
            while not self.ready:
                _log.error("the engine's process on %s ended; another starts in %g s", self.device, self._restart_s)
                await asyncio.sleep(self._restart_s)
                self._restart_s = min(2 * self._restart_s, LONGEST_RESTART_S)
                try:
                    await self._launch()
                except StillmotionError as error:
                    _log.error("the engine on %s did not start: %s", self.device, error.message)
        finally:
            self._restarting = None


def in_process(entries: Sequence[ModelEntry], settings: EngineSettings) -> Engine:
    """The child's engine."""
    from serving.engine.inprocess import InProcessEngine  # here: the parent has no use for torch

    return InProcessEngine(entries, settings)


def serve_pipe(
    connection: Connection,
    entries: Sequence[ModelEntry],
    settings: EngineSettings,
    make: Callable[[Sequence[ModelEntry], EngineSettings], Engine],
) -> None:
    """The child: run an engine until its parent says None or is gone, or until its device breaks."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the parent drains first
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_serve(connection, entries, make(entries, settings)))
    os._exit(0)  # a thread inside a broken device's driver may never end


async def _serve(connection: Connection, entries: Sequence[ModelEntry], engine: Engine) -> None:
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def receive(message: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: the child ends
            loop.call_soon_threadsafe(inbox.put_nowait, message)

    pipe = PipeEnd(connection, receive)
    try:
        await engine.start()
    except Exception as error:  # noqa: BLE001 - told to the parent, whose service it ends
        known = isinstance(error, StillmotionError)
        message = error.message if isinstance(error, StillmotionError) else f"{type(error).__name__}: {error}"
        code = error.code if isinstance(error, StillmotionError) else StillmotionError.code
        pipe.send(StartFailure(message, code, error.param if isinstance(error, StillmotionError) else None))
        _log.log(logging.INFO if known else logging.ERROR, "the engine did not start", exc_info=not known)
        pipe.close(_LAST_EVENTS_S)
        return
    running: set[asyncio.Task[None]] = set()
    reporting = asyncio.create_task(_report(pipe, entries, engine, inbox))
    while (message := await inbox.get()) is not None:
        if isinstance(message, EngineRequest):
            task = asyncio.create_task(_follow(pipe, engine, message))
            running.add(task)
            task.add_done_callback(running.discard)
        else:
            engine.cancel(message)
    reporting.cancel()
    await engine.stop()
    if running:
        await asyncio.wait(running, timeout=_LAST_EVENTS_S)
    pipe.close(_LAST_EVENTS_S)


async def _follow(pipe: PipeEnd, engine: Engine, request: EngineRequest) -> None:
    async for event in engine.submit(request):
        pipe.send((request.job_id, event))


async def _report(pipe: PipeEnd, entries: Sequence[ModelEntry], engine: Engine, inbox: asyncio.Queue[Any]) -> None:
    """Say how the engine does, and end the child once it is broken."""
    while not is_broken(engine):
        rates = {entry.name: RequestRates.measured(entry, engine.estimate) for entry in entries}
        stats = engine.stats() if isinstance(engine, HasStats) else None
        pipe.send(EngineStatus(engine.ready, engine.capacity, rates, stats))
        await asyncio.sleep(STATUS_S)
    inbox.put_nowait(None)

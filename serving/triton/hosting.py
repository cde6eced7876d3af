"""The model host inside Triton: one request frame in, event frames out; and config.pbtxt parameters as settings.

Knows no Triton, and imports no torch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from model.catalog import ModelEntry
from model.errors import InvalidRequest, StillmotionError
from serving.engine.profile import RequestRates
from serving.engine.protocol import (
    TERMINAL,
    CancelledAt,
    Completed,
    Engine,
    EngineEvent,
    EngineRequest,
    Failed,
    Stepped,
)
from serving.engine.settings import EngineSettings, engine_options
from serving.engine.stats import EngineStats, is_broken
from serving.triton.wire import (
    HEARTBEAT,
    Frame,
    ReceivedRequest,
    RequestFrame,
    Status,
    entry_fields,
    pack_event,
    unpack_request,
)

_log = logging.getLogger(__name__)
CANCEL_POLL_S: Final = 0.1
"""Seconds between two looks at whether a caller has gone."""
HEARTBEAT_S: Final = 5.0
"""Seconds between two heartbeats in a generation's stream: Triton ends no stream of an instance that was killed."""
LAST_WORDS_S: Final = 10.0
"""Seconds in which the last events of requests are sent before a model is unloaded, or its process ends."""
BROKEN_EXIT: Final = 70
"""Exit code of a process whose device is broken: sysexits' EX_SOFTWARE."""


@dataclass(slots=True)
class Running:
    """A request in flight."""

    request: ReceivedRequest
    left_s: float | None
    noted_at: float = field(default_factory=time.monotonic)
    step: int = 0

    def note(self, event: EngineEvent) -> None:
        """Remember how far it is."""
        if isinstance(event, Stepped):
            self.step = event.step
            if event.eta_s is not None:
                self.left_s, self.noted_at = event.eta_s, time.monotonic()

    def left(self) -> float:
        """Seconds of work left, by the last report."""
        return max(0.0, (self.left_s or 0.0) - (time.monotonic() - self.noted_at))


class Host:
    """Answers requests with an engine.

    Args:
        entry: the checkpoint the engine serves.
        engine: started and stopped by the owner, and stopped by a `stop` frame.
        repository_version: the number of the checkpoint's folder.
        stats: the engine's counts, for a status.
    """

    def __init__(
        self,
        entry: ModelEntry,
        engine: Engine,
        repository_version: int,
        stats: Callable[[], EngineStats | None] = lambda: None,
    ) -> None:
        self._entry = entry
        self._engine = engine
        self._version = repository_version
        self._stats = stats
        self._running: dict[str, Running] = {}
        self._numbers = itertools.count()
        self._draining = False
        self._leaving = False

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._running)

    async def leave_if_broken(self, leave: Callable[[int], object] = os._exit) -> None:
        """End the process of an engine whose device is broken, once its requests have their last events.

        Triton starts another process for the instance, which loads the model anew; in this one nothing could run again.

        Args:
            leave: ends the process with an exit code.
        """
        if not is_broken(self._engine) or self._leaving:
            return
        self._leaving = True
        until = time.monotonic() + LAST_WORDS_S
        while self.in_flight and time.monotonic() < until:
            await asyncio.sleep(0.05)
        _log.error("the device is broken: this process ends, and Triton starts another")
        logging.shutdown()
        leave(BROKEN_EXIT)

    async def answer(
        self, frame: RequestFrame, send: Callable[[Frame], None], cancelled: Callable[[], bool], *, beats: bool = False
    ) -> None:
        """Answer a request to its end.

        Args:
            send: takes one event at a time.
            cancelled: whether the caller has gone.
            beats: whether a generation's stream has heartbeats.
        """
        try:
            request = unpack_request(frame)
            if request.kind == "generate":
                await self._generate(request, send, cancelled, beats)
            else:
                send(pack_event(await self._control(request)))
        except StillmotionError as error:
            send(pack_event(Failed(error.code, error.message)))

    async def _control(self, request: ReceivedRequest) -> Status:
        if request.kind == "cancel":
            for engine_id, running in self._running.items():
                if running.request.id == request.id:
                    _log.info("job %s is to stop, after step %d", request.id, running.step)
                    self._engine.cancel(engine_id)
        elif request.kind in ("drain", "stop"):
            self._draining = True
            if request.kind == "stop":
                _log.info("stopping: %d requests are checkpointed and end", self.in_flight)
                await self._engine.stop()
        return self._status(request.client)

    async def _generate(
        self, received: ReceivedRequest, send: Callable[[Frame], None], cancelled: Callable[[], bool], beats: bool
    ) -> None:
        request = self._request(received)
        running = Running(received, self._engine.estimate(self._entry.name, request.params))
        self._running[request.job_id] = running
        try:
            async with (
                self._watching(request.job_id, cancelled),
                self._heartbeat(send) if beats else nullcontext(),
                _closing(self._engine.submit(request)) as events,
            ):
                async for event in events:
                    running.note(event)
                    if isinstance(event, TERMINAL):
                        _log.info("job %s after step %d: %s", received.id, running.step, _ending(event))
                    if isinstance(event, Completed):
                        event = replace(event, manifest=event.manifest | {"repository_version": self._version})
                    send(pack_event(event))
        finally:
            del self._running[request.job_id]

    def _request(self, request: ReceivedRequest) -> EngineRequest:
        """The engine's request, by an id of its own: a job may come again while its last attempt still ends."""
        try:
            params = self._entry.resolve(dict(request.params), seed=0)
        except TypeError as error:
            raise InvalidRequest(f"a setting is of the wrong type: {error}", param="params") from error
        expected = len(self._entry.task.pictures)
        if len(request.pictures) != expected:
            raise InvalidRequest(
                f"{self._entry.task.name} takes {expected} pictures, not {len(request.pictures)}", param="pictures"
            )
        return EngineRequest(
            f"{request.id}#{next(self._numbers)}",
            self._entry.name,
            params,
            request.pictures,
            request.output_format,
            request.share,
            request.state,
            request.previews,
            raw=request.raw,
        )

    @asynccontextmanager
    async def _heartbeat(self, send: Callable[[Frame], None]) -> AsyncIterator[None]:
        """Send a heartbeat into a generation's stream at once, and then every few seconds."""

        async def beat() -> None:
            while True:
                send(HEARTBEAT)
                await asyncio.sleep(HEARTBEAT_S)

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @asynccontextmanager
    async def _watching(self, engine_id: str, cancelled: Callable[[], bool]) -> AsyncIterator[None]:
        """Ask the engine to stop the request once its caller has gone."""

        async def watch() -> None:
            while not cancelled():
                await asyncio.sleep(CANCEL_POLL_S)
            self._engine.cancel(engine_id)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _status(self, client: str) -> Status:
        rates = RequestRates.measured(self._entry, self._engine.estimate)
        stats = self._stats()
        return Status(
            entry=entry_fields(self._entry),
            repository_version=self._version,
            capacity=self._engine.capacity,
            in_flight=self.in_flight,
            others_s=sum(one.left() for one in self._running.values() if one.request.client != client),
            fixed_s=None if rates is None else rates.fixed_s,
            step_s=None if rates is None else rates.step_s,
            draining=self._draining or not self._engine.ready,
            stats={} if stats is None else _stats_message(stats),
        )


@asynccontextmanager
async def _closing(stream: AsyncIterator[EngineEvent]) -> AsyncIterator[AsyncIterator[EngineEvent]]:
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


def _stats_message(stats: EngineStats) -> dict[str, Any]:
    """The counts as they are sent; the batch slots keep the key that earlier versions read."""
    counts = asdict(stats)
    del counts["eta_errors"]
    return counts | {"places": counts.pop("batch_slots")}


def _ending(event: EngineEvent) -> str:
    if isinstance(event, Failed):
        return f"failed ({event.code})"
    return "cancelled" if isinstance(event, CancelledAt) else "completed"


PARAMETERS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    option.name: (setting, option.read) for setting, option in engine_options()
}
"""Parameter of config.pbtxt -> the setting's name in EngineSettings, and how its text is read."""
_WRITTEN_BY_EXPORT: Final = frozenset({"backend", "checkpoint_version"})


def settings_from(parameters: Mapping[str, str], kind: str, device_id: int) -> EngineSettings:
    """The engine's settings.

    Args:
        parameters: of the configuration.
        kind: of the instance, `GPU` or `CPU`; it decides the device unless a parameter does.
        device_id: the GPU's number.

    Raises:
        InvalidRequest: a parameter's value is none.
    """
    values: dict[str, Any] = {"device": f"cuda:{device_id}" if kind == "GPU" else "cpu"}
    for name, text in parameters.items():
        if name not in PARAMETERS:
            if name not in _WRITTEN_BY_EXPORT and not name.startswith("label."):
                _log.warning("config.pbtxt has a parameter %s that stillmotion does not know", name)
            continue
        setting, read = PARAMETERS[name]
        try:
            values[setting] = read(text)
        except (KeyError, ValueError) as error:
            raise InvalidRequest(f"parameter {name} of config.pbtxt cannot be {text!r}", param=name) from error
    return EngineSettings(**values)

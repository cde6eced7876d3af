"""The gateway's engine where Triton does the work: one or many servers behind the Engine protocol. No torch.

A job runs on one server at a time. Where that server dies, is drained, or unloads the model under it, the job ends here
as stopped: the queue takes it back, and it resumes elsewhere from the last checkpoint in the artifact store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, overload
from uuid import uuid4

from model.catalog import ModelEntry
from model.errors import StillmotionError
from model.params import Params
from serving.engine.profile import RequestRates
from serving.engine.protocol import TERMINAL, CancelledAt, EngineEvent, EngineRequest, Failed, Stepped, refuse_chained
from serving.triton.channel import ServerLost
from serving.triton.pool import Pool, RemoteJob, Replica, Server, choose_replica
from serving.triton.wire import pack_control, pack_request, state_version

_log = logging.getLogger(__name__)
ENGINE_STOPPED: Final = "engine_stopped"
"""As serving.jobs.runner reads it: the job goes back into the queue."""
CANCEL_S: Final = 10.0
"""Seconds a server has to end a cancelled job; then its stream is closed, which cancels the request there too."""
PATIENCE_S: Final = 30.0
"""Seconds a job waits for a server that serves its model, before it goes back into the queue."""


@dataclass(slots=True, eq=False)
class _PendingJob:
    """A job on its way."""

    step: int = 0
    server: Server | None = None
    replica: Replica | None = None
    cancelled: bool = False
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)


class TritonEngine:
    """Implements serving.engine.protocol.Engine.

    Args:
        urls: the servers' gRPC services, HOST:PORT each.
        models: the models to serve, by name; empty for all that the servers have.
        client: names this gateway to the servers.
    """

    def __init__(self, urls: Sequence[str], models: Collection[str] = (), client: str | None = None) -> None:
        self._client = client or uuid4().hex
        self._pool = Pool(urls, self._client)
        self._models = frozenset(models)
        self._pending: dict[str, _PendingJob] = {}
        self._cancelling: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect to every server; returns once one of them takes work."""
        await self._pool.start()
        async with self._pool.changed:
            await self._pool.changed.wait_for(lambda: self.ready)

    async def stop(self) -> None:
        """Let go of the servers: what runs is cancelled there, and ends here as stopped."""
        await self._pool.stop()
        for task in self._cancelling:
            task.cancel()
        await asyncio.gather(*self._cancelling, return_exceptions=True)

    @property
    def ready(self) -> bool:
        """Whether a server takes work."""
        return bool(self._replicas())

    @property
    def capacity(self) -> int:
        """Requests that all servers together take in flight."""
        return sum(replica.capacity for replica in self._replicas())

    def entries(self) -> list[ModelEntry]:
        """The checkpoints served now."""
        return [entry for entry in self._pool.entries() if not self._models or entry.name in self._models]

    def estimate(self, model: str, params: Params) -> float | None:
        """Seconds the request would take on an idle server, by what its server measured; None while unknown."""
        hosted = self._pool.hosted(model)
        if hosted is None or hosted.status.fixed_s is None or hosted.status.step_s is None:
            return None
        return RequestRates(hosted.status.fixed_s, hosted.status.step_s).seconds(hosted.entry, params)

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """Take a request; its events, as they happen, until a terminal one."""
        if (refusal := refuse_chained(request)) is not None:
            yield refusal
            return
        pending = self._pending[request.job_id] = _PendingJob()
        try:
            async with aclosing(self._run(request, pending)) as events:
                async for event in events:
                    yield event
        except ServerLost as error:
            _log.warning("job %s after step %d: %s", request.job_id, pending.step, error)
            if pending.server is not None:
                pending.server.break_off(error.message)
            yield CancelledAt(pending.step, 0.0) if pending.cancelled else Failed(ENGINE_STOPPED, error.message)
        finally:
            if self._pending.get(request.job_id) is pending:
                del self._pending[request.job_id]

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop at the next step boundary; unknown ids are ignored (it has ended)."""
        pending = self._pending.get(job_id)
        if pending is not None and not pending.cancelled:
            pending.cancelled = True
            task = asyncio.get_running_loop().create_task(self._cancel(job_id, pending))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)

    def _replicas(self, model: str | None = None) -> list[Replica]:
        return [replica for replica in self._pool.replicas(model) if not self._models or replica.name in self._models]

    async def _run(self, request: EngineRequest, pending: _PendingJob) -> AsyncGenerator[EngineEvent, None]:
        """The job's events from the server chosen for it.

        Raises:
            ServerLost: there is none, or it was lost on the way.
        """
        replica = await self._choose(request, pending)
        if replica is None:
            yield CancelledAt(0, 0.0)
            return
        if request.resume_from is not None and state_version(request.resume_from) not in (None, replica.version):
            _log.warning("job %s begins anew: no server has the version it began on", request.job_id)
            request = replace(request, resume_from=None)
        pending.replica, pending.server = replica, self._pool.servers[replica.url]
        job = pending.server.jobs[request.job_id] = RemoteJob(self.estimate(request.model, request.params) or 0.0)
        frame = pack_request(request, self._client)
        stream = pending.server.channel.generate(replica.name, replica.number, frame, request.job_id)
        try:
            async with aclosing(_until(stream, pending.server, pending.abandoned)) as events:
                async for event in events:
                    if isinstance(event, Stepped):
                        pending.step = event.step
                        if event.eta_s is not None:
                            job.update(event.eta_s)
                    if isinstance(event, Failed) and event.code == ENGINE_STOPPED:
                        pending.server.break_off("it stops")
                    yield event
        finally:
            if pending.server.jobs.get(request.job_id) is job:
                del pending.server.jobs[request.job_id]

    async def _choose(self, request: EngineRequest, pending: _PendingJob) -> Replica | None:
        """The place for a job; waits for one. None once the job was cancelled.

        A job with a stored state goes where the state was made; where nobody has that version (any more), anywhere.

        Raises:
            ServerLost: none was there in time.
        """
        pinned = None if request.resume_from is None else state_version(request.resume_from)

        def candidate() -> Replica | None:
            replicas = self._replicas(request.model)
            return choose_replica(replicas, pinned) or choose_replica(replicas)

        try:
            async with asyncio.timeout(PATIENCE_S), self._pool.changed:
                await self._pool.changed.wait_for(lambda: pending.cancelled or candidate() is not None)
        except TimeoutError:
            raise ServerLost("any address", f"none serves {request.model}") from None
        return None if pending.cancelled else candidate()

    async def _cancel(self, job_id: str, pending: _PendingJob) -> None:
        """Tell the server; where it does not end the job in time, close the stream."""
        async with self._pool.changed:
            self._pool.changed.notify_all()  # it may still wait for a place
        if pending.server is None or pending.replica is None:
            return
        with suppress(ServerLost, TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                frame = pack_control("cancel", self._client, job_id)
                await pending.server.channel.ask(pending.replica.name, pending.replica.number, frame)
                while self._pending.get(job_id) is pending:
                    await asyncio.sleep(0.05)
        pending.abandoned.set()


async def _until(
    stream: AsyncGenerator[EngineEvent, None], server: Server, abandoned: asyncio.Event
) -> AsyncGenerator[EngineEvent, None]:
    """The stream, ended once its server is lost (a dead host closes no connection) or the job is given up.

    Raises:
        ServerLost: either.
    """
    ends = {asyncio.ensure_future(event.wait()) for event in (server.lost, abandoned)}
    coming: asyncio.Future[EngineEvent] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(stream))
            await asyncio.wait({coming, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise ServerLost(server.url, "it does not answer any more")
            event = coming.result()
            yield event
            if isinstance(event, TERMINAL):
                return
    finally:
        waiting: list[asyncio.Future[Any]] = [*ends, coming] if coming is not None else [*ends]
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await stream.aclose()


class LiveModels(Sequence[ModelEntry]):
    """The checkpoints that an engine's servers serve at the moment: a version that went live, a model loaded since.

    Args:
        engine: whose.
        found: what was there before it was started.
    """

    def __init__(self, engine: TritonEngine, entries: Sequence[ModelEntry]) -> None:
        self._engine = engine
        self._initial = tuple(entries)

    def __len__(self) -> int:
        return len(self._now())

    @overload
    def __getitem__(self, index: int) -> ModelEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ModelEntry]: ...
    def __getitem__(self, index: int | slice) -> ModelEntry | Sequence[ModelEntry]:
        return self._now()[index]

    def _now(self) -> Sequence[ModelEntry]:
        return self._engine.entries() or self._initial


class NoServer(StillmotionError):
    """No Triton server answered in time, or none serves a requested model."""

    code = "no_triton_server"


async def discover(urls: Sequence[str], models: Collection[str] = (), wait_s: float = 60.0) -> list[ModelEntry]:
    """The checkpoints that servers serve, once one of them serves any (and each of `models`).

    Raises:
        NoServer: none does in `wait_s` seconds.
    """
    pool = Pool(urls, "discovery")
    await pool.start()

    def entries() -> dict[str, ModelEntry]:
        return {entry.name: entry for entry in pool.entries()}

    try:
        async with asyncio.timeout(wait_s), pool.changed:
            await pool.changed.wait_for(lambda: bool(entries()) and entries().keys() >= set(models))
    except TimeoutError:
        there = ", ".join(entries()) or "none"
        names = " or ".join(models) or "a model of stillmotion"
        raise NoServer(f"no Triton server at {', '.join(urls)} serves {names}; served: {there}") from None
    finally:
        await pool.stop()
    return [entry for name, entry in entries().items() if not models or name in models]

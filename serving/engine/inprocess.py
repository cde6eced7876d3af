"""The engine in the caller's own process: an asyncio face on the step loop's worker thread."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future

import torch

from model.catalog import ModelEntry
from model.params import Params
from serving.engine.loaded_model import load_model
from serving.engine.loop import StepLoop, stopped
from serving.engine.protocol import EngineEvent, EngineRequest, event_stream
from serving.engine.settings import EngineSettings
from serving.engine.stats import EngineStats
from serving.engine.warmup import load_fastest, warm_up
from serving.observe.logs import START

logger = logging.getLogger(__name__)
_progress = logging.getLogger(START)


class InProcessEngine:
    """Implements serving.engine.protocol.Engine.

    Args:
        entries: the checkpoints to serve; requests name them by `entry.name`.
        settings: limits, device, threads.
    """

    def __init__(self, entries: Sequence[ModelEntry], settings: EngineSettings | None = None) -> None:
        self._entries = tuple(entries)
        self._settings = settings or EngineSettings()
        self._loop: StepLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop_requested = threading.Event()

    async def start(self) -> None:
        """Load every checkpoint and warm it, on the worker thread; returns once requests are served.

        Raises:
            CheckpointError: one does not load.
        """
        self._stop_requested.clear()
        loaded: Future[None] = Future()
        loaded.set_running_or_notify_cancel()
        self._thread = threading.Thread(target=self._work, args=(loaded,), name="stillmotion-engine", daemon=True)
        self._thread.start()
        await asyncio.wrap_future(loaded)

    async def stop(self) -> None:
        """Stop between two steps and let go of the models. Jobs not yet decoded end as Failed(engine_stopped)."""
        self._stop_requested.set()
        if self._loop is not None:
            self._loop.stop()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._loop = self._thread = None

    @property
    def ready(self) -> bool:
        """Whether the models are loaded, the worker thread lives, and memory did not run out just now."""
        loop, thread = self._loop, self._thread
        return loop is not None and thread is not None and thread.is_alive() and loop.healthy

    @property
    def broken(self) -> bool:
        """Whether it ended by itself and for good: a new process is needed to serve again."""
        return self._loop is not None and self._loop.broken

    @property
    def capacity(self) -> int:
        """Requests in flight at once: those being worked on; a durable queue keeps the rest better than memory does."""
        return self._settings.max_rows

    def stats(self) -> EngineStats | None:
        """Counts since the start; None while not started."""
        return None if self._loop is None else self._loop.stats()

    def estimate(self, model: str, params: Params) -> float | None:
        """Seconds the request would take on an idle engine, by measured step and decode times; None while unknown."""
        return None if self._loop is None else self._loop.estimate(model, params)

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """Take a request at once; its events, as they happen, until a terminal one.

        Closing the stream before its end cancels the job. Call it inside a running event loop. More requests than
        `capacity` are taken too, and wait. What is wrong with a request comes as a Failed event.

        Raises:
            InvalidRequest: the job id is already in flight.
        """
        events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        deliver = self._deliverer(request.job_id, asyncio.get_running_loop(), events)
        if self._loop is None:
            deliver(stopped())
        else:
            self._loop.submit(request, deliver)
        return event_stream(events, lambda ended: None if ended else self.cancel(request.job_id))

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop at the next step boundary; unknown ids are ignored (it has ended)."""
        if self._loop is not None:
            self._loop.cancel(job_id)

    def _work(self, loaded: Future[None]) -> None:
        settings = self._settings
        try:
            # torch keeps its thread count per thread, so it is set on this one.
            torch.set_num_threads(settings.fixed_threads if settings.deterministic else settings.cores)
            load = load_fastest if settings.warm_up else load_model
            models = {}
            for number, entry in enumerate(self._entries, 1):
                began = time.perf_counter()
                models[entry.name] = load(entry, settings)
                seconds = time.perf_counter() - began
                _progress.info("loaded %s in %.1f s (%d of %d)", entry.name, seconds, number, len(self._entries))
            if settings.warm_up:
                for model in models.values():
                    warm_up(model)
            self._loop = loop = StepLoop(models, settings)
        except Exception as error:  # noqa: BLE001 - raised again by start()
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        if self._stop_requested.is_set():  # requested while loading, before there was a loop
            loop.stop()
        loop.run()

    def _deliverer(
        self, job_id: str, caller: asyncio.AbstractEventLoop, events: asyncio.Queue[EngineEvent]
    ) -> Callable[[EngineEvent], None]:
        def deliver(event: EngineEvent) -> None:
            try:
                caller.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the caller's event loop is closed: nobody can follow the job any more
                logger.warning("job %s has no listener any more, it is cancelled", job_id)
                self.cancel(job_id)

        return deliver

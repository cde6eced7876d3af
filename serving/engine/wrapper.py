"""The base of engine wrappers: an engine that passes everything to another one, but for what a subclass changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from model.params import Params
from serving.engine.protocol import Engine, EngineEvent, EngineRequest
from serving.engine.stats import EngineStats, HasStats


class EngineWrapper:
    """Implements serving.engine.protocol.Engine by another one, all but `submit`.

    Args:
        engine: what does the work.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def start(self) -> None:
        """Start the engine."""
        await self._engine.start()

    async def stop(self) -> None:
        """Stop the engine."""
        await self._engine.stop()

    @property
    def ready(self) -> bool:
        """Whether the engine is warm."""
        return self._engine.ready

    @property
    def capacity(self) -> int:
        """How many requests the engine takes in flight at once."""
        return self._engine.capacity

    def stats(self) -> EngineStats | None:
        """The engine's counts, if it counts."""
        return self._engine.stats() if isinstance(self._engine, HasStats) else None

    def estimate(self, model: str, params: Params) -> float | None:
        """Seconds the request would take on an idle engine."""
        return self._engine.estimate(model, params)

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop."""
        self._engine.cancel(job_id)

    def _events(self, request: EngineRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        return closing_events(self._engine, request)


@asynccontextmanager
async def closing_events(engine: Engine, request: EngineRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
    """The engine's events, closed at the end, also where somebody stops listening early."""
    stream = engine.submit(request)
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()

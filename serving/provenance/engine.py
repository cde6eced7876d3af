"""An engine whose results are finished: manifest completed and inside the mp4, signed where a key is given."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

from model.params import Params
from serving.engine.protocol import Completed, Engine, EngineEvent, EngineRequest
from serving.engine.stats import EngineStats
from serving.jobs.threads import in_thread
from serving.observe.collectors import Counted
from serving.provenance.finish import Signer, finish


class FinishingEngine:
    """Implements serving.engine.protocol.Engine by another one.

    Args:
        engine: what makes the videos.
        notes: what else a job's manifest shall say, by the job's id; blocks.
        signer: signs mp4s; None for none.
    """

    def __init__(self, engine: Engine, notes: Callable[[str], Mapping[str, Any]], signer: Signer | None = None) -> None:
        self._engine = engine
        self._notes = notes
        self._signer = signer

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
        return self._engine.stats() if isinstance(self._engine, Counted) else None

    def estimate(self, model: str, params: Params) -> float | None:
        """Seconds the request would take on an idle engine."""
        return self._engine.estimate(model, params)

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop."""
        self._engine.cancel(job_id)

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """The engine's events, the result among them finished."""
        stream = self._engine.submit(request)
        try:
            async for event in stream:
                yield await in_thread(self._finished, request, event) if isinstance(event, Completed) else event
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()

    def _finished(self, request: EngineRequest, result: Completed) -> Completed:
        done = finish(
            result,
            request.params,
            request.images,
            request.output_format,
            notes=self._notes(request.job_id),
            signer=self._signer,
        )
        return replace(result, video=done.video, video_sha256=done.video_sha256, manifest=done.manifest)

"""An engine whose results are finished: manifest completed and inside the mp4, signed where a key is given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

from serving.engine.protocol import Completed, Engine, EngineEvent, EngineRequest
from serving.jobs.threads import in_thread
from serving.observe.around import EngineAround
from serving.provenance.finish import Signer, finish


class FinishingEngine(EngineAround):
    """An engine, its results finished.

    Args:
        engine: what makes the videos.
        notes: what else a job's manifest shall say, by the job's id; blocks.
        signer: signs mp4s; None for none.
    """

    def __init__(self, engine: Engine, notes: Callable[[str], Mapping[str, Any]], signer: Signer | None = None) -> None:
        super().__init__(engine)
        self._notes = notes
        self._signer = signer

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """The engine's events, the result among them finished."""
        async with self._events(request) as events:
            async for event in events:
                yield await in_thread(self._finished, request, event) if isinstance(event, Completed) else event

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

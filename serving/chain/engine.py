"""An engine that also runs chained requests, around one that runs single stages.

It stands above the Engine protocol, so it does not know whether both models are in one process or on several Triton
servers (docs/adr/0008-chained-interpolation.md).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from model.catalog import ModelEntry
from model.chain import Interpolation
from serving.chain.flight import Flight
from serving.chain.kept import Kept
from serving.engine.protocol import Engine, EngineEvent, EngineRequest
from serving.jobs.artifacts import Artifacts
from serving.observe.around import EngineAround


class ChainedEngine(EngineAround):
    """An engine, chained requests included.

    Args:
        engine: of single stages.
        artifacts: where a chained job keeps what it has made so far.
        models: what is served, read anew at each use.
    """

    def __init__(self, engine: Engine, artifacts: Artifacts, models: Sequence[ModelEntry]) -> None:
        super().__init__(engine)
        self._artifacts = artifacts
        self._models = models
        self._flights: dict[str, Flight] = {}

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """Take a request; its events, as they happen, until a terminal one."""
        chain = request.interpolate
        return self._engine.submit(request) if chain is None else self._chained(request, chain)

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop at the next step boundary, whichever stage it is in."""
        flight = self._flights.get(job_id)
        if flight is None:
            self._engine.cancel(job_id)
        else:
            flight.cancel()

    async def _chained(self, request: EngineRequest, chain: Interpolation) -> AsyncGenerator[EngineEvent, None]:
        kept = Kept(self._artifacts, request.job_id)
        flight = self._flights[request.job_id] = Flight(self._engine, request, chain, kept, self._version_of)
        try:
            async with aclosing(flight.run()) as events:
                async for event in events:
                    yield event
        finally:
            if self._flights.get(request.job_id) is flight:
                del self._flights[request.job_id]

    def _version_of(self, name: str) -> str:
        return next((entry.version for entry in self._models if entry.name == name), "")

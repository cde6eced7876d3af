"""The engine wrapper that runs chained requests: a clip, then frame interpolation of its pairs, then one video.

It stands above the Engine protocol, so it does not know whether both models are in one process or on several Triton
servers (docs/adr/0008-chained-interpolation.md). The first stage is one request of the engine, the second one request
a pair. The events are those of one job: phases in order (`interpolate` between `decode` and `mux`), steps, and the
seconds left of both stages. An interrupted job resumes from its files (serving.interpolation.pair_store).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from model.catalog import ModelEntry
from model.interpolation import InterpolationStage
from serving.background import run_in_thread
from serving.engine.protocol import (
    TERMINAL,
    CancelledAt,
    Completed,
    Engine,
    EngineEvent,
    EngineRequest,
    PhaseStarted,
    Share,
    Stepped,
)
from serving.engine.wrapper import EngineWrapper, closing_events
from serving.interpolation.pair_store import STAGE, PairStore, Rendered
from serving.interpolation.pairs import Pairs
from serving.jobs.artifacts import Artifacts


class ChainedJob:
    """One chained job.

    Args:
        engine: of single stages.
        request: the job.
        chain: its second stage.
        kept: its files.
        version_of: the version of a checkpoint that is served now, by name.
    """

    def __init__(
        self,
        engine: Engine,
        request: EngineRequest,
        chain: InterpolationStage,
        store: PairStore,
        version_of: Callable[[str], str],
    ) -> None:
        self._engine, self._request, self._chain, self._store = engine, request, chain, store
        self._version_of = version_of
        self._began = time.monotonic()
        self._cancelled = asyncio.Event()
        self._pairs: Pairs | None = None

    def cancel(self) -> None:
        """Stop what runs at its next step, and begin nothing more."""
        self._cancelled.set()
        if self._pairs is None:
            self._engine.cancel(self._request.job_id)
        else:
            self._pairs.cancel()

    async def run(self) -> AsyncGenerator[EngineEvent, None]:
        """The job's events, the last a terminal one."""
        mark = f"{self._request.model}@{self._version_of(self._request.model)}"
        first = await run_in_thread(self._store.rendered, STAGE, mark)
        if first is None:
            async with aclosing(self._first_stage()) as events:
                async for event in events:
                    if isinstance(event, Completed):
                        first = Rendered.of(event)
                        break
                    yield event
            if first is None:
                return
            await run_in_thread(self._store.put, STAGE, mark, first)
        async with aclosing(self._second_stage(first)) as events:
            async for event in events:
                yield event

    async def _first_stage(self) -> AsyncGenerator[EngineEvent, None]:
        """The clip to interpolate; its events are the job's but for the result, whose frames are raw."""
        beyond = self._pairs_s()
        share = replace(self._request.share, beyond_s=beyond or 0.0)
        request = replace(self._request, interpolate=None, raw=True, share=share)
        async with closing_events(self._engine, request) as events:
            async for event in events:
                if isinstance(event, Stepped):
                    known = None if event.eta_s is None or beyond is None else event.eta_s + beyond
                    yield replace(event, eta_s=known)
                elif event != PhaseStarted("mux"):  # there is nothing to mux yet
                    yield event
                if isinstance(event, TERMINAL):
                    return
                if self._cancelled.is_set():  # it may have been requested before the engine knew of the request
                    self._engine.cancel(request.job_id)

    async def _second_stage(self, first: Rendered) -> AsyncGenerator[EngineEvent, None]:
        steps = self._request.params.num_inference_steps
        if self._cancelled.is_set():
            yield CancelledAt(steps, first.compute_s)
            return
        began = time.monotonic()
        served = self._version_of(self._chain.model)
        pairs = Pairs(
            self._engine, self._request, self._chain, first.frames, self._store, served=served, share=self._share_left()
        )
        self._pairs = pairs
        yield PhaseStarted("interpolate")
        async with aclosing(pairs.run()) as events:
            async for event in events:
                yield event
        ending = pairs.ending
        if isinstance(ending, CancelledAt):
            yield CancelledAt(steps + ending.step, first.compute_s + ending.compute_s)
            return
        if ending is not None:
            yield ending
            return
        timings = {name: seconds for name, seconds in first.timings.items() if name not in ("compute", "mux")}
        timings["interpolate"] = time.monotonic() - began
        yield PhaseStarted("mux")
        began = time.monotonic()
        result = await run_in_thread(self._result, first, pairs.rendered)
        if self._cancelled.is_set():
            total = steps + pairs.step
            yield CancelledAt(total, first.compute_s + pairs.compute_s)
            return
        yield replace(result, timings=timings | {"mux": time.monotonic() - began})

    def _result(self, first: Rendered, rendered: dict[int, Rendered]) -> Completed:
        from serving.interpolation.assemble import assemble_result  # codecs, for which a gateway has no use but here

        between = [rendered[index] for index in range(len(first.frames) - 1)]
        return assemble_result(first, between, self._chain, self._request.params.fps, self._request.output_format)

    def _pairs_s(self) -> float | None:
        """Seconds of the second stage on an idle engine; None while unknown."""
        one = self._engine.estimate(self._chain.model, self._chain.params)
        return None if one is None else one * (self._request.params.num_frames - 1)

    def _share_left(self) -> Share:
        """The job's share, with what is left of its deadline by now."""
        share = self._request.share
        if share.deadline_s is None:
            return share
        return replace(share, deadline_s=share.deadline_s - (time.monotonic() - self._began))


class ChainedEngine(EngineWrapper):
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
        self._jobs: dict[str, ChainedJob] = {}

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """Take a request; its events, as they happen, until a terminal one."""
        chain = request.interpolate
        return self._engine.submit(request) if chain is None else self._chained(request, chain)

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop at the next step boundary, whichever stage it is in."""
        job = self._jobs.get(job_id)
        if job is None:
            self._engine.cancel(job_id)
        else:
            job.cancel()

    async def _chained(self, request: EngineRequest, chain: InterpolationStage) -> AsyncGenerator[EngineEvent, None]:
        store = PairStore(self._artifacts, request.job_id)
        job = self._jobs[request.job_id] = ChainedJob(self._engine, request, chain, store, self._version_of)
        try:
            async with aclosing(job.run()) as events:
                async for event in events:
                    yield event
        finally:
            if self._jobs.get(request.job_id) is job:
                del self._jobs[request.job_id]

    def _version_of(self, name: str) -> str:
        return next((entry.version for entry in self._models if entry.name == name), "")

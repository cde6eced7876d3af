"""The engine wrapper that runs chained requests: a clip, then each of its stages, then one video.

It stands above the Engine protocol, so it does not know whether the models are in one process or on several Triton
servers (docs/adr/0008-chained-interpolation.md). The first stage is one request of the engine, the later ones many
(a window, a pair), or none (frames are made larger here). The events are those of one job: phases in order (`extend`,
`interpolate` and `upscale` between `decode` and `mux`), steps, and the seconds left of all stages. An interrupted job
resumes from its files (serving.interpolation.pair_store), in the middle of any stage.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from model.catalog import ModelEntry
from model.errors import StillmotionError
from model.media.upscale import Upscalers
from model.stages import NO_STAGES
from serving.background import run_in_thread
from serving.engine.protocol import (
    TERMINAL,
    CancelledAt,
    Completed,
    Engine,
    EngineEvent,
    EngineRequest,
    Failed,
    PhaseStarted,
    Share,
    Stepped,
)
from serving.engine.wrapper import EngineWrapper, closing_events
from serving.interpolation.assemble import video_of
from serving.interpolation.pair_store import STAGE, PairStore, Rendered
from serving.interpolation.pairs import Pairs
from serving.interpolation.progress import later_s
from serving.interpolation.upscaling import Upscaling
from serving.interpolation.windows import Windows
from serving.jobs.artifacts import Artifacts


class StageRun(Protocol):
    """A stage of one job, in work."""

    @property
    def phase(self) -> str:
        """The job's phase meanwhile."""
        ...

    @property
    def step(self) -> int:
        """Steps made."""
        ...

    @property
    def ending(self) -> Failed | CancelledAt | None:
        """How it ended if not well; `CancelledAt` counts this stage alone."""
        ...

    compute_s: float

    def run(self) -> AsyncGenerator[EngineEvent, None]:
        """Do the work; steps as they happen, which count all of the stage."""
        ...

    def cancel(self) -> None:
        """Stop at the next step."""
        ...

    def clip(self) -> Rendered:
        """What came of it; blocks."""
        ...


class ChainedJob:
    """One chained job.

    Args:
        engine: of single stages.
        request: the job.
        store: its files.
        version_of: the version of a checkpoint that is served now, by name.
        upscalers: what can make frames larger, and `turn` held while one is in work.
    """

    def __init__(
        self,
        engine: Engine,
        request: EngineRequest,
        store: PairStore,
        version_of: Callable[[str], str],
        upscalers: Upscalers,
        turn: asyncio.Semaphore,
    ) -> None:
        self._engine, self._request, self._store = engine, request, store
        self._version_of, self._upscalers, self._turn = version_of, upscalers, turn
        self._began = time.monotonic()
        self._cancelled = asyncio.Event()
        self._current: StageRun | None = None
        self._timings: dict[str, float] = {}
        self._steps = 0
        self._compute_s = 0.0

    def cancel(self) -> None:
        """Stop what runs at its next step, and begin nothing more."""
        self._cancelled.set()
        if self._current is None:
            self._engine.cancel(self._request.job_id)
        else:
            self._current.cancel()

    async def run(self) -> AsyncGenerator[EngineEvent, None]:
        """The job's events, the last a terminal one."""
        mark = f"{self._request.model}@{self._version_of(self._request.model)}"
        clip = await run_in_thread(self._store.rendered, STAGE, mark)
        if clip is None:
            async with aclosing(self._first_stage()) as events:
                async for event in events:
                    if isinstance(event, Completed):
                        clip = Rendered.of(event)
                        break
                    yield event
            if clip is None:
                return
            await run_in_thread(self._store.put, STAGE, mark, clip)
        self._steps, self._compute_s = self._request.params.num_inference_steps, clip.compute_s
        self._timings = {name: seconds for name, seconds in clip.timings.items() if name not in ("compute", "mux")}
        for stage in self._later():
            async with aclosing(self._stage(stage, clip)) as events:
                async for event in events:
                    if isinstance(event, Rendered):
                        clip = event
                        break
                    yield event
                    if isinstance(event, TERMINAL):
                        return
        yield PhaseStarted("mux")
        began = time.monotonic()
        fps = self._request.stages.size(self._request.params).fps
        result = await run_in_thread(video_of, clip, fps, self._request.output_format)
        if self._cancelled.is_set():
            yield CancelledAt(self._steps, self._compute_s)
            return
        yield replace(result, timings=self._timings | {"mux": time.monotonic() - began})

    async def _first_stage(self) -> AsyncGenerator[EngineEvent, None]:
        """The clip to go on from; its events are the job's but for the result, whose frames are raw."""
        beyond = self._seconds_behind("generate")
        share = replace(self._request.share, beyond_s=beyond or 0.0)
        request = replace(self._request, stages=NO_STAGES, raw=True, share=share)
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

    def _later(self) -> Iterator[Callable[[Rendered], StageRun]]:
        """The stages after the first, each to be begun with the clip that it goes on from."""
        stages = self._request.stages
        if stages.extend is not None:
            yield self._windows
        if stages.interpolate is not None:
            yield self._pairs
        if stages.upscale is not None:
            yield self._upscaling

    async def _stage(
        self, begin: Callable[[Rendered], StageRun], clip: Rendered
    ) -> AsyncGenerator[Any, None]:  # EngineEvents, and the next clip as the last of them
        if self._cancelled.is_set():
            yield CancelledAt(self._steps, self._compute_s)
            return
        try:
            run = await run_in_thread(begin, clip)
        except StillmotionError as error:  # an upscaler that is not there (any more)
            yield Failed(error.code, error.message)
            return
        began, self._current = time.monotonic(), run
        if self._cancelled.is_set():
            run.cancel()
        yield PhaseStarted(run.phase)
        behind = self._seconds_behind(run.phase) if isinstance(run, Pairs) else 0.0  # the others count it themselves
        async with aclosing(run.run()) as events:
            async for event in events:
                if isinstance(event, Stepped) and event.eta_s is not None:
                    event = replace(event, eta_s=None if behind is None else event.eta_s + behind)
                yield event
        ending = run.ending
        if isinstance(ending, CancelledAt):
            yield CancelledAt(self._steps + ending.step, self._compute_s + ending.compute_s)
        elif ending is not None:
            yield ending
        else:
            self._steps, self._compute_s = self._steps + run.step, self._compute_s + run.compute_s
            following = await run_in_thread(run.clip)
            self._timings[run.phase] = time.monotonic() - began
            yield following

    def _windows(self, clip: Rendered) -> StageRun:
        stage = self._request.stages.extend
        assert stage is not None
        served = self._version_of(stage.model)
        return Windows(
            self._engine,
            self._request,
            stage,
            clip,
            self._store,
            served=served,
            share=self._share_left(),
            beyond_s=self._seconds_behind("extend") or 0.0,
        )

    def _pairs(self, clip: Rendered) -> StageRun:
        stage = self._request.stages.interpolate
        assert stage is not None
        served = self._version_of(stage.model)
        return Pairs(self._engine, self._request, stage, clip, self._store, served=served, share=self._share_left())

    def _upscaling(self, clip: Rendered) -> StageRun:
        stage = self._request.stages.upscale
        assert stage is not None
        return Upscaling(stage, self._upscalers.find(stage.network), clip, self._store, self._turn)

    def _seconds_behind(self, phase: str) -> float | None:
        """Seconds of the stages behind this one on an idle engine; None while unknown."""
        names = ["generate", *self._request.stages.as_dict()]
        behind = names[names.index(phase) + 1 :]
        if not behind:
            return 0.0
        later = later_s(self._engine, self._request.params, self._request.stages)
        return None if later is None else sum(later[name] for name in behind)

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
        upscalers: what can make frames larger; Lanczos alone if left out.
    """

    def __init__(
        self,
        engine: Engine,
        artifacts: Artifacts,
        models: Sequence[ModelEntry],
        upscalers: Upscalers | None = None,
    ) -> None:
        super().__init__(engine)
        self._artifacts = artifacts
        self._models = models
        self._upscalers = upscalers or Upscalers()
        self._turn = asyncio.Semaphore(1)
        self._jobs: dict[str, ChainedJob] = {}

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """Take a request; its events, as they happen, until a terminal one."""
        return self._chained(request) if request.stages else self._engine.submit(request)

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop at the next step boundary, whichever stage it is in."""
        job = self._jobs.get(job_id)
        if job is None:
            self._engine.cancel(job_id)
        else:
            job.cancel()

    async def _chained(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        store = PairStore(self._artifacts, request.job_id)
        job = ChainedJob(self._engine, request, store, self._version_of, self._upscalers, self._turn)
        self._jobs[request.job_id] = job
        try:
            async with aclosing(job.run()) as events:
                async for event in events:
                    yield event
        finally:
            if self._jobs.get(request.job_id) is job:
                del self._jobs[request.job_id]

    def _version_of(self, name: str) -> str:
        return next((entry.version for entry in self._models if entry.name == name), "")

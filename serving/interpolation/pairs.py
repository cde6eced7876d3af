"""The interpolating stage of a chained job: each pair of neighbouring frames is an ordinary request of the engine.

So rows of pairs are batched with each other and with everybody's, are parked, checkpointed and contained as any row is,
and behind Triton go to whichever server is free. They are charged to the job's owner, in its class, with what is left
of its deadline; each counts the pairs beside it as its own remaining work, so that a long job in short pieces does not
pass for a short one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Final

from PIL import Image

from model.errors import InvalidRequest
from model.interpolation import Frames, InterpolationStage
from model.media.image import to_png
from serving.background import run_in_thread
from serving.engine.protocol import (
    CancelledAt,
    Checkpointed,
    Completed,
    Engine,
    EngineEvent,
    EngineRequest,
    Failed,
    Share,
    Stepped,
)
from serving.engine.wrapper import closing_events
from serving.interpolation.assemble import interpolated
from serving.interpolation.pair_store import PairStore, Rendered, pair_name

_log = logging.getLogger(__name__)
ENGINE_STOPPED: Final = "engine_stopped"
"""As serving.jobs.runner reads it: the job goes back into the queue, with what is kept of it."""


class Pairs:
    """Runs the pairs of one job.

    Args:
        engine: of single stages.
        job: the chained request.
        chain: the stage.
        clip: what is interpolated.
        store: where results and checkpoints are kept.
        served: the checkpoint's version that is served now.
        share: whose work it is; of each pair, but for `beyond_s`.
    """

    phase = "interpolate"

    def __init__(
        self,
        engine: Engine,
        job: EngineRequest,
        chain: InterpolationStage,
        clip: Rendered,
        store: PairStore,
        *,
        served: str,
        share: Share,
    ) -> None:
        self._engine, self._job, self._chain, self._clip, self._store = engine, job, chain, clip, store
        self._frames = frames = clip.frames
        self._share = share
        self._mark = f"{chain.model}@{served}"
        self._count = len(frames) - 1
        self._steps = [0] * self._count
        self._found = 0
        """Steps that were not made now but found."""
        self._began = time.monotonic()
        self._room = asyncio.Semaphore(max(1, engine.capacity))
        self._running: set[str] = set()
        self._progress: asyncio.Queue[Stepped | None] = asyncio.Queue()
        self._failure: Failed | None = None
        self._cancelled = False
        self.rendered: dict[int, Rendered] = {}
        """The frames between, by pair."""
        self.compute_s = 0.0

    @property
    def step(self) -> int:
        """Steps made, of all pairs."""
        return sum(self._steps)

    @property
    def ending(self) -> Failed | CancelledAt | None:
        """How the stage ended if not well; `CancelledAt` counts this stage alone."""
        if self._cancelled:
            return CancelledAt(self.step, self.compute_s)
        if self._failure is None and len(self.rendered) < self._count:
            return Failed("generation_failed", "the engine ended a pair that nobody cancelled")
        return self._failure

    def clip(self) -> Rendered:
        """The clip, interpolated; blocks. Its manifest says how under `interpolate`."""
        return interpolated(self._clip, [self.rendered[index] for index in range(self._count)], self._chain)

    def cancel(self) -> None:
        """Begin no more, and stop what runs at its next step."""
        self._cancelled = True
        self._stop_all()

    async def run(self) -> AsyncGenerator[EngineEvent, None]:
        """Make every pair; progress as it happens."""
        everything = asyncio.create_task(self._all(), name=f"pairs of {self._job.job_id}")
        everything.add_done_callback(lambda _: self._progress.put_nowait(None))
        try:
            while (event := await self._progress.get()) is not None:
                yield event
            await everything
        finally:
            everything.cancel()
            await asyncio.gather(everything, return_exceptions=True)

    async def _all(self) -> None:
        self._mark += f" of {await run_in_thread(_digest, self._frames)}"
        async with asyncio.TaskGroup() as group:
            for index in range(self._count):
                group.create_task(self._pair(index))

    async def _pair(self, index: int) -> None:
        async with self._room:
            if self._is_over():
                return
            rendered = await run_in_thread(self._store.rendered, pair_name(index), self._mark)
            if rendered is not None:
                self._found += self._chain.params.num_inference_steps
                self._note(index, rendered)
                return
            outcome = await self._render(index)
        if isinstance(outcome, Completed):
            rendered = Rendered.of(outcome).inner()
            self._note(index, rendered)
            await run_in_thread(self._store.put, pair_name(index), self._mark, rendered)
            await run_in_thread(self._store.discard_state, index)
        elif isinstance(outcome, CancelledAt):
            self.compute_s += outcome.compute_s
        elif self._failure is None:
            self._failure = outcome
            if outcome.code != ENGINE_STOPPED:  # then another server may still be at the others, whose work is kept
                self._failure = Failed(outcome.code, f"between frames {index + 1} and {index + 2}: {outcome.message}")
                self._stop_all()

    async def _render(self, index: int) -> Completed | Failed | CancelledAt:
        """Make one pair, on from its checkpoint if it has one that is of use."""
        state = await run_in_thread(self._store.state, index, self._mark)
        outcome = await self._submit(index, state)
        unusable = isinstance(outcome, Failed) and outcome.code == InvalidRequest.code and not self._steps[index]
        if unusable and state is not None and not self._is_over():
            _log.warning("pair %d of job %s begins anew: %s", index, self._job.job_id, outcome)
            await run_in_thread(self._store.discard_state, index)
            outcome = await self._submit(index, None)
        return outcome

    async def _submit(self, index: int, state: bytes | None) -> Completed | Failed | CancelledAt:
        request = await run_in_thread(self._request, index, state)
        if self._is_over():
            return CancelledAt(0, 0.0)
        self._running.add(request.job_id)
        try:
            async with closing_events(self._engine, request) as events:
                async for event in events:
                    match event:
                        case Stepped(step):
                            self._report(index, step, resumed=state is not None)
                        case Checkpointed(_, newer):
                            await run_in_thread(self._store.put_state, index, self._mark, newer)
                        case Completed() | Failed() | CancelledAt():
                            return event
                        case _:  # the phases of one pair are not the job's
                            pass
                    if self._is_over():  # it may have been requested before the engine knew of the request
                        self._stop(request.job_id)
            return Failed("generation_failed", "the engine ended the events of a pair without a result")
        finally:
            self._running.discard(request.job_id)

    def _request(self, index: int, state: bytes | None) -> EngineRequest:
        left = self._count - len(self.rendered) - 1
        whole = self._engine.estimate(self._chain.model, self._chain.params) or 0.0
        return EngineRequest(
            f"{self._job.job_id}.pair-{index}",
            self._chain.model,
            self._chain.pair(index),
            (_png(self._frames[index]), _png(self._frames[index + 1])),
            self._job.output_format,
            replace(self._share, beyond_s=left * whole),
            resume_from=state,
            raw=True,
        )

    def _note(self, index: int, rendered: Rendered) -> None:
        self.rendered[index] = rendered
        self.compute_s += rendered.compute_s
        self._report(index, self._chain.params.num_inference_steps)

    def _report(self, index: int, step: int, *, resumed: bool = False) -> None:
        """One pair is this far: a step of the stage, unless it was reported before."""
        if resumed and not self._steps[index]:
            self._found += step - 1
        if step > self._steps[index]:
            self._steps[index] = step
            total = self._count * self._chain.params.num_inference_steps
            self._progress.put_nowait(Stepped(self.step, total, self._seconds_left(total)))

    def _seconds_left(self, total: int) -> float | None:
        """By the pace of this stage so far, its encodings and decodings included."""
        rendered = self.step - self._found
        return (time.monotonic() - self._began) / rendered * (total - self.step) if rendered > 0 else None

    def _is_over(self) -> bool:
        return self._cancelled or self._failure is not None

    def _stop_all(self) -> None:
        for request_id in list(self._running):
            self._engine.cancel(request_id)

    def _stop(self, request_id: str) -> None:
        if self._cancelled or (self._failure is not None and self._failure.code != ENGINE_STOPPED):
            self._engine.cancel(request_id)


def _digest(frames: Frames) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()


def _png(frame: Frames) -> bytes:
    return to_png(Image.fromarray(frame))

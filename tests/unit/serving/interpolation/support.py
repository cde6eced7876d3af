"""An engine that follows a script, and whose frames say who made them: the protocol around a chain, no networks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from model.interpolation import plan_interpolation
from model.params import Params
from model.stages import Stages
from serving.engine.mux import build_result
from serving.engine.protocol import (
    CancelledAt,
    Checkpointed,
    Completed,
    Decoded,
    EngineEvent,
    EngineRequest,
    Failed,
    PhaseStarted,
    Queued,
    Share,
    Stepped,
)
from serving.interpolation.engine import ChainedEngine
from serving.jobs.artifacts import Artifacts
from tests.support.fakes import model_entry

STILL = model_entry(name="still")
BETWEEN = model_entry("frame-interpolation", name="between", version="b" * 12)
PAIRS, STEPS = 4, 4
"""Of STILL's five frames, and of either stage."""


def request(share: Share | None = None, previews: bool = False) -> EngineRequest:
    """A chained request of 4 pairs."""
    params = STILL.resolve({}, 7)
    stages = Stages(interpolate=plan_interpolation(BETWEEN, params))
    return staged(stages, share, previews)


def staged(stages: Stages, share: Share | None = None, previews: bool = False) -> EngineRequest:
    """A request of STILL's clip with these stages behind it."""
    params = STILL.resolve({}, 7)
    return EngineRequest("job", "still", params, (b"png",), "mp4", share or Share(), previews=previews, stages=stages)


@dataclass
class Script:
    """Implements serving.engine.protocol.Engine. A clip's frames all have its seed, modulo 256, as their colour.

    Args:
        seconds: what any request takes, as `estimate` says.
        at_step: called after each step of a request; what it returns ends the request.
    """

    capacity: int = 2
    seconds: float | None = 10.0
    at_step: Callable[[str, int], Failed | None] = lambda _id, _step: None
    ready: bool = True
    seen: dict[str, EngineRequest] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    completed: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    most: int = 0

    async def start(self) -> None:
        self.ready = True

    async def stop(self) -> None:
        self.ready = False

    def estimate(self, model: str, params: Params) -> float | None:
        return self.seconds

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        self.seen[request.job_id] = request
        self.running.add(request.job_id)
        self.most = max(self.most, len(self.running))
        try:
            async for event in self._play(request):
                if isinstance(event, Completed):
                    self.completed.add(request.job_id)
                yield event
        finally:
            self.running.discard(request.job_id)

    async def _play(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        yield Queued(0)
        yield PhaseStarted("encode")
        yield PhaseStarted("denoise")
        begun = int(request.resume_from or b"0")
        for step in range(begun + 1, STEPS + 1):
            await asyncio.sleep(0.001)
            if request.job_id in self.cancelled:
                yield CancelledAt(step - 1, 0.5 * (step - 1))
                return
            yield Stepped(step, STEPS, 1.0)
            yield Checkpointed(step, str(step).encode())
            if (ending := self.at_step(request.job_id, step)) is not None:
                yield ending
                return
        yield PhaseStarted("decode")
        frames = np.full((request.params.num_frames, 64, 96, 3), request.params.seed % 256, np.uint8)
        yield Decoded(len(frames), len(frames))
        yield PhaseStarted("mux")
        told = {
            "model": request.model,
            "model_version": "v",
            "decode_chunks": [5],
            "degraded": request.job_id.endswith("pair-2"),
            "device": "cpu",
        }
        done = build_result(
            frames,
            fps=request.params.fps,
            output_format=None if request.raw else request.output_format,
            degraded=request.job_id.endswith("pair-2"),
            manifest=told,
        )
        object.__setattr__(done, "timings", {"denoise": 1.0, "compute": 0.5})
        yield done


def chained(script: Script, folder: Path) -> ChainedEngine:
    """The engine under test, around a script."""
    return ChainedEngine(script, Artifacts.open(str(folder)), (STILL, BETWEEN))

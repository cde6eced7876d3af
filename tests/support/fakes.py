"""Fakes that tests share: a checkpoint's description without a checkpoint, and an engine that follows a script.

ScriptedEngine makes no videos. It exists to test the protocol around an engine: what is accepted, stored, sent and
refused. The real engine has its own tests, and the two meet in tests/integration.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.catalog import ModelEntry
from model.params import Params
from model.tasks import TASKS
from serving.engine.protocol import (
    CancelledAt,
    Completed,
    Decoded,
    EngineEvent,
    EngineRequest,
    Failed,
    PhaseStarted,
    Previewed,
    Queued,
    Stepped,
)

DEFAULTS: dict[str, Any] = {
    "fps": 7,
    "motion_bucket_id": 127,
    "noise_aug_strength": 0.02,
    "min_guidance_scale": 1.0,
    "max_guidance_scale": 3.0,
    "num_inference_steps": 4,
    "solver": "euler",
    "schedule": "karras",
    "decode_chunk_size": 8,
    "resize_mode": "crop",
}
"""A checkpoint's own settings."""


def model_entry(task: str = "image-to-video", *, version: str = "0123456789ab", **changes: Any) -> ModelEntry:
    """A checkpoint's description: what gateway, jobs and offline rendering read instead of weights."""
    entry = ModelEntry(
        name=task,
        path=Path("nowhere"),
        task=TASKS[task],
        identity=version,
        num_frames=(5,),
        height=64,
        width=96,
        unit=32,
        defaults=DEFAULTS,
    )
    return replace(entry, **changes)


@dataclass
class ScriptedEngine:
    """Plays the engine's part of the protocol, for protocol tests only.

    Args:
        capacity: as the protocol has it.
        gated: wait for `gate` before every step.
        estimate_s: what it says that any request takes.
        ending: how each job ends instead of Completed, if set: an event, or an exception to raise.
    """

    capacity: int = 1
    gated: bool = False
    ending: Failed | Exception | None = None
    start_failure: Exception | None = None
    estimate_s: float | None = None
    warm: asyncio.Event | None = None
    ready: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[EngineRequest] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    in_flight: int = 0
    most_in_flight: int = 0
    stopped: bool = False

    async def start(self) -> None:
        if self.start_failure is not None:
            raise self.start_failure
        if self.warm is not None:
            await self.warm.wait()
        self.ready = True

    async def stop(self) -> None:
        self.stopped, self.ready = True, False

    def estimate(self, model: str, params: Params) -> float | None:
        return self.estimate_s

    def cancel(self, job_id: str) -> None:
        if any(request.job_id == job_id for request in self.requests):
            self.cancelled.add(job_id)

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            async for event in self._play(request):
                yield event
        finally:
            self.in_flight -= 1

    async def _play(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        total = request.params.num_inference_steps
        yield Queued(0)
        yield PhaseStarted("encode")
        yield PhaseStarted("denoise")
        for step in range(1, total + 1):
            await self._between_steps(request.job_id)
            if request.job_id in self.cancelled:
                yield CancelledAt(step - 1, 0.25 * (step - 1))
                return
            yield Stepped(step, total, 0.1 * (total - step))
            if request.previews:
                yield Previewed(step, self.preview(step))
        if isinstance(self.ending, Exception):
            raise self.ending
        if self.ending is not None:
            yield self.ending
            return
        yield PhaseStarted("decode")
        yield Decoded(request.params.num_frames, request.params.num_frames)
        yield PhaseStarted("mux")
        yield self.result(request)

    async def _between_steps(self, job_id: str) -> None:
        while self.gated and not self.gate.is_set() and job_id not in self.cancelled:
            await asyncio.sleep(0.005)

    @staticmethod
    def preview(step: int) -> bytes:
        """Another picture for every step."""
        return b"\xff\xd8\xff" + bytes([step])

    @staticmethod
    def result(request: EngineRequest) -> Completed:
        """Canned bytes that depend on the seed, in the boxes of an mp4 so that a manifest finds its place."""
        data = np.random.default_rng(request.params.seed % 2**32).bytes(2976)
        video = b"\0\0\0\x10ftypisom\0\0\0\0" + (8 + len(data)).to_bytes(4, "big") + b"mdat" + data
        return Completed(
            video=video,
            video_sha256=hashlib.sha256(video).hexdigest(),
            frames_sha256=hashlib.sha256(video[:10]).hexdigest(),
            thumbnail=b"\xff\xd8\xff thumbnail",
            frames=b"\x89PNG frames",
            width=request.params.width,
            height=request.params.height,
            num_frames=request.params.num_frames,
            fps=request.params.fps,
            degraded=False,
            manifest={"model": request.model, "seed": request.params.seed},
            timings={"denoise": 0.5},
        )

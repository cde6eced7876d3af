"""What the contract tests share: an engine that follows a script, a checkpoint entry, pictures, and a running app.

ScriptedEngine makes no videos. It exists to test the protocol around an engine: what is accepted, stored, told and
refused. The real engine has its own tests, and the two meet in tests/integration.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image
from stillmotion.types import ErrorBody, ErrorResponse, Job

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
from serving.gateway import Settings, create_app
from serving.gateway.services import Integrations, Services
from serving.provenance.finish import Finished, finish

DEFAULTS = {
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


def entry(name: str = "scripted", defaults: dict[str, Any] | None = None) -> ModelEntry:
    """A checkpoint's description without a checkpoint: the gateway reads no weights."""
    return ModelEntry(
        name=name,
        path=Path("nowhere"),
        task=TASKS["image-to-video"],
        version="0123456789ab",
        num_frames=(5,),
        height=64,
        width=96,
        unit=32,
        defaults=DEFAULTS if defaults is None else defaults,
    )


def picture(format: str = "PNG", size: tuple[int, int] = (48, 32), seed: int = 0) -> bytes:
    """A small picture, encoded."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


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


def finished(request: EngineRequest) -> Finished:
    """What the service makes of the engine's canned result: with the manifest in it."""
    return finish(ScriptedEngine.result(request), request.params, request.images, request.output_format)


@dataclass
class Running:
    """A running app, its parts, and a client for it."""

    client: httpx.AsyncClient
    engine: ScriptedEngine
    services: Services
    folder: Path
    address: str

    async def submit(self, *, headers: dict[str, str] | None = None, **fields: Any) -> Job:
        """A job from a good picture."""
        answer = await self.post(headers=headers, **fields)
        assert answer.status_code == 202, answer.text
        return Job.model_validate(answer.json())

    async def post(self, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return await self.client.post(
            "/generate/image-to-video",
            files={"image": ("still.png", picture(), "image/png")},
            data={name: str(value) for name, value in fields.items()},
            headers=headers,
        )

    async def until(self, job_id: str, *statuses: str) -> Job:
        """The job once it has one of these statuses; the test's own time limit ends the wait."""
        while True:
            job = Job.model_validate((await self.client.get(f"/jobs/{job_id}")).json())
            if job.status in statuses:
                return job
            assert not job.is_terminal, job
            await asyncio.sleep(0.01)

    async def stored(self) -> tuple[int, list[str]]:
        """How many jobs there are, and every file below the artifacts' folder."""
        jobs = (await self.client.get("/jobs")).json()["data"]
        below = self.folder / "artifacts"
        return len(jobs), sorted(str(path.relative_to(below)) for path in below.rglob("*"))


def settings(folder: Path, **changes: Any) -> Settings:
    values = {
        "database_url": f"sqlite:///{folder}/jobs.db",
        "artifacts": str(folder / "artifacts"),
        "progress_interval_s": 0,
        **changes,
    }
    return Settings(**values)


@asynccontextmanager
async def running(
    folder: Path, engine: ScriptedEngine | None = None, outside: Integrations | None = None, **changes: Any
) -> AsyncIterator[Running]:
    """The app, called in process."""
    engine = engine or ScriptedEngine()
    app = create_app(engine, [entry(), entry("second")], settings(folder, **changes), outside=outside)
    transport = httpx.ASGITransport(app)
    address = "http://test"
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=address) as client:
        yield Running(client, engine, app.state.services, folder, address)


@asynccontextmanager
async def listening(folder: Path, engine: ScriptedEngine | None = None, **changes: Any) -> AsyncIterator[Running]:
    """The app behind a real server on a loopback port."""
    engine = engine or ScriptedEngine()
    app = create_app(engine, [entry()], settings(folder, **changes))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=address, timeout=10) as client:
            yield Running(client, engine, app.state.services, folder, address)
    finally:
        server.should_exit = True
        await serving


def error_of(answer: httpx.Response) -> ErrorBody:
    """The error of an answer, whose shape is checked on the way."""
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"type", "code", "message", "param", "request_id"}
    error = ErrorResponse.model_validate(answer.json()).error
    assert error.request_id == answer.headers["x-request-id"]
    assert error.message
    return error

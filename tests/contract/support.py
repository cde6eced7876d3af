"""What the contract tests share: pictures, and a running app before a scripted engine (tests.support.fakes)."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import uvicorn
from PIL import Image
from stillmotion.types import ErrorBody, ErrorResponse, Job

from model.catalog import ModelEntry
from serving.engine.protocol import EngineRequest
from serving.gateway import Settings, create_app
from serving.gateway.connections import limited_protocol
from serving.gateway.services import Integrations, Services
from serving.provenance.video_manifest import Finished, finish
from tests.support import shared_routes as shared_routes
from tests.support import shared_tables as shared_tables
from tests.support.fakes import DEFAULTS, ScriptedEngine, model_entry


def entry(name: str = "scripted", defaults: dict[str, Any] | None = None) -> ModelEntry:
    """An image-to-video checkpoint's description, by name."""
    return model_entry(name=name, defaults=DEFAULTS if defaults is None else defaults)


def picture(format: str = "PNG", size: tuple[int, int] = (48, 32), seed: int = 0) -> bytes:
    """A small picture, encoded."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def finished(request: EngineRequest) -> Finished:
    """What the service makes of the engine's canned result: with the manifest in it."""
    return finish(ScriptedEngine.result(request), request.params, request.images, request.output_format)


@dataclass
class Running:
    """A running app, its parts, and a client for it."""

    client: httpx2.AsyncClient
    engine: ScriptedEngine
    services: Services
    folder: Path
    address: str

    async def submit(self, *, headers: dict[str, str] | None = None, **fields: Any) -> Job:
        """A job from a good picture."""
        answer = await self.post(headers=headers, **fields)
        assert answer.status_code == 202, answer.text
        return Job.model_validate(answer.json())

    async def post(self, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
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
    folder: Path, engine: ScriptedEngine | None = None, integrations: Integrations | None = None, **changes: Any
) -> AsyncIterator[Running]:
    """The app, called in process."""
    engine = engine or ScriptedEngine()
    app = create_app(engine, [entry(), entry("second")], settings(folder, **changes), integrations=integrations)
    transport = httpx2.ASGITransport(app)
    address = "http://test"
    async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url=address) as client:
        yield Running(client, engine, app.state.services, folder, address)


@asynccontextmanager
async def listening(
    folder: Path, engine: ScriptedEngine | None = None, models: Sequence[ModelEntry] = (), **changes: Any
) -> AsyncIterator[Running]:
    """The app behind a real server on a loopback port."""
    engine = engine or ScriptedEngine()
    chosen = settings(folder, **changes)
    app = create_app(engine, models or [entry()], chosen)
    protocol = limited_protocol(chosen.connection_limits)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on", ws="none", http=protocol)
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        async with httpx2.AsyncClient(base_url=address, timeout=10) as client:
            yield Running(client, engine, app.state.services, folder, address)
    finally:
        server.should_exit = True
        await serving


@contextmanager
def listening_in_a_thread(folder: Path, engine: ScriptedEngine, models: Sequence[ModelEntry] = ()) -> Iterator[str]:
    """The same for callers that are not asynchronous; its address."""
    started, ended = threading.Event(), threading.Event()
    addresses: list[str] = []

    async def serve() -> None:
        async with listening(folder, engine, models) as app:
            addresses.append(app.address)
            started.set()
            while not ended.is_set():
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(120), "a busy machine is no failure, but this one is too busy"
        yield addresses[0]
    finally:
        ended.set()
        thread.join()


def error_of(answer: httpx2.Response) -> ErrorBody:
    """The error of an answer, whose shape is checked on the way."""
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"type", "code", "message", "param", "request_id"}
    error = ErrorResponse.model_validate(answer.json()).error
    assert error.request_id == answer.headers["x-request-id"]
    assert error.message
    return error

"""The server that gateway_load drives: the real gateway on SQLite, in its own process, before an engine that sleeps."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil

from model.catalog import ModelEntry
from model.params import Params
from model.tasks import TASKS
from serving.engine.protocol import Completed, EngineEvent, EngineRequest, PhaseStarted, Stepped

_START_S: Final = 120.0
_STOP_S: Final = 30.0
_DEFAULTS: Final = {
    "fps": 7,
    "motion_bucket_id": 127,
    "max_guidance_scale": 3.0,
    "num_inference_steps": 2,
    "solver": "euler",
    "schedule": "karras",
    "decode_chunk_size": 8,
}


@dataclass
class SleepingEngine:
    """Takes as long as it is told to, and makes no video.

    Args:
        seconds: a job takes.
        capacity: jobs at once.
    """

    seconds: float
    capacity: int
    ready: bool = False
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Nothing to load."""
        self.ready = True

    async def stop(self) -> None:
        """Let every job end."""
        self.ready = False
        self._stopped.set()

    def estimate(self, model: str, params: Params) -> float:  # noqa: ARG002 - the protocol's
        """As long as it is told to."""
        return self.seconds

    def cancel(self, job_id: str) -> None:
        """It ends soon enough."""

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """A step, a sleep, and an empty result."""
        yield PhaseStarted("denoise")
        yield Stepped(1, 2, self.seconds)
        try:
            async with asyncio.timeout(self.seconds):
                await self._stopped.wait()
        except TimeoutError:
            pass
        size = (request.params.width, request.params.height, request.params.num_frames, request.params.fps)
        yield Completed(b"\0\0\0\x08ftyp", "", "", b"", b"", *size, False, {"engine": "sleeping"})


def entries() -> list[ModelEntry]:
    """Two checkpoints' descriptions without a checkpoint: one takes a picture, one takes a prompt alone."""
    pictures = {"noise_aug_strength": 0.02, "min_guidance_scale": 1.0, "resize_mode": "crop"}
    return [
        _entry("sleeping", "image-to-video", {**_DEFAULTS, **pictures}),
        _entry("sleeping-text", "text-to-video", _DEFAULTS),
    ]


def _entry(name: str, task: str, defaults: dict[str, object]) -> ModelEntry:
    return ModelEntry(name, Path("nowhere"), TASKS[task], "0" * 12, (14,), 256, 448, 32, defaults)


def serve(port: int, folder: str, seconds: float, capacity: int, queue_limit: int, limited: bool) -> None:
    """The server's process."""
    import uvicorn

    from serving.gateway import Settings, create_app
    from serving.gateway.connections import limited_protocol

    fields: dict[str, Any] = {
        "database_url": f"sqlite:///{folder}/jobs.db",
        "artifacts": f"{folder}/files",
        "queue_limit": queue_limit,
    }
    settings = Settings(**fields)
    app = create_app(SleepingEngine(seconds, capacity), entries(), settings)
    protocol: Any = limited_protocol(settings.connection_limits) if limited else "httptools"
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=5,
        http=protocol,
        ws="none",
    )


class Server:
    """A server in a process of its own, for as long as it is entered.

    Args:
        seconds: a job takes.
        capacity: jobs at once.
        queue_limit: jobs that may wait.
        limited: with the limits on connections, as `stillmotion serve` has them.
    """

    def __init__(self, *, seconds: float, capacity: int, queue_limit: int, limited: bool = True) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory(prefix="gateway-load-")
        arguments = (self.port, self._folder.name, seconds, capacity, queue_limit, limited)
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)

    async def __aenter__(self) -> Server:
        self._process.start()
        until = time.monotonic() + _START_S
        try:
            async with httpx2.AsyncClient() as client:
                while not await self._ready(client):
                    if time.monotonic() > until or not self._process.is_alive():
                        raise RuntimeError("the server did not start; its own words are above")
                    await asyncio.sleep(0.1)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.terminate()
        await asyncio.to_thread(self._process.join, _STOP_S)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        self._folder.cleanup()

    async def _ready(self, client: httpx2.AsyncClient) -> bool:
        try:
            return (await client.get(f"http://127.0.0.1:{self.port}/health/ready")).status_code == 200
        except httpx2.TransportError:
            return False

    @property
    def database_url(self) -> str:
        """Of the server's job store."""
        return f"sqlite:///{self._folder.name}/jobs.db"

    def database_mib(self) -> float:
        """Size of the job store, its journal among it."""
        return sum(path.stat().st_size for path in Path(self._folder.name).glob("jobs.db*")) / 2**20

    def memory_mib(self) -> float:
        """Resident memory of the server."""
        return float(psutil.Process(self._process.pid).memory_info().rss / 2**20)

    def cpu_s(self) -> float:
        """Seconds of processor time that the server has used."""
        used = psutil.Process(self._process.pid).cpu_times()
        return float(used.user + used.system)

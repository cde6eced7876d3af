"""What the Triton tests share: a real tritonserver from the wheel, a repository of tiny checkpoints, a gateway."""

from __future__ import annotations

import asyncio
import io
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import uvicorn
from PIL import Image
from stillmotion.types import Job, JobEvent

from export.pipeline import install_checkpoint
from export.triton_config import Instances
from model.catalog import ModelEntry
from model.interpolation import PAIR_FRAMES
from model.presets import NoiseRange, preset
from model.tasks import TASKS
from model.testing import build_random
from serving.engine.local import generate
from serving.engine.settings import EngineSettings
from serving.gateway import Settings, create_app
from serving.triton import server as wheel
from serving.triton.client import LiveModels, TritonEngine, discover
from serving.triton.server import Ports, TritonServer, from_wheel

HOSTED = {"deterministic": "true", "checkpoint_every_s": "0.2", "warm_up": "false", "threads": "1"}
IN_PROCESS = EngineSettings(device="cpu", deterministic=True, threads=1, warm_up=False, checkpoint_every_s=None)
TINY = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0))


def checkpoint(folder: Path, task: str, seed: int = 5) -> ModelEntry:
    """A tiny checkpoint with random weights; for frame interpolation, one that chains may use."""
    frames = PAIR_FRAMES if task == "frame-interpolation" else None
    return build_random(folder / task, TINY, TASKS[task], seed=seed, num_frames=frames)


def host(entry: ModelEntry, repository: Path, instances: int = 1) -> None:
    """Install it, to be run by torch on one thread in deterministic mode."""
    install_checkpoint(entry, repository, parameters=HOSTED, instances=Instances("KIND_CPU", instances))


def picture(seed: int = 0) -> bytes:
    """A small PNG of the clip's size, so that nothing is resized."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def pictures_of(entry: ModelEntry) -> tuple[bytes, ...]:
    """One for each that the task takes."""
    return tuple(picture(seed) for seed in range(len(entry.task.pictures)))


def undisturbed(entry: ModelEntry, seed: int, **asked: Any) -> str:
    """The frames' hash of a request in this process, alone."""
    params = entry.resolve(asked, seed=seed)
    return generate(entry, params, pictures_of(entry), settings=IN_PROCESS).completed.frames_sha256


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def triton_server(repository: Path, log: Path, models: Sequence[str] = ()) -> Iterator[TritonServer]:
    """A real server on a repository, ready; killed at the end whatever happens."""
    ports = Ports(free_port(), free_port(), 0)
    with log.open("wb") as output:
        found = from_wheel(wheel.fetch_server())
        environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        server = TritonServer(found, repository, ports, models, environment, output)
        try:
            server.start()
            server.wait_ready(600)
            yield server
        except Exception as error:
            error.add_note(log.read_text()[-3000:])
            raise
        finally:
            server.kill()


@dataclass
class Gateway:
    """A gateway in this process, before Triton servers."""

    client: httpx2.AsyncClient
    database_url: str
    artifacts: Path
    engine: TritonEngine

    async def submit(self, entry: ModelEntry, seed: int, **asked: Any) -> Job:
        """A job, from the pictures of its task."""
        fields = {"model": entry.name, "seed": seed, **asked}
        files = {
            name: (f"{name}.png", content, "image/png")
            for name, content in zip(entry.task.pictures, pictures_of(entry), strict=True)
        }
        data = {name: str(value) for name, value in fields.items()}
        if files:
            answer = await self.client.post(f"/generate/{entry.task.name}", data=data, files=files)
        else:
            answer = await self.client.post(f"/generate/{entry.task.name}", json=fields)
        assert answer.status_code == 202, answer.text
        return Job.model_validate(answer.json())

    async def job(self, job_id: str) -> Job:
        """As it is now."""
        return Job.model_validate((await self.client.get(f"/jobs/{job_id}")).json())

    async def ended(self, *jobs: Job) -> list[Job]:
        """The jobs once all have ended."""
        while True:
            now = [await self.job(job.id) for job in jobs]
            if all(job.is_terminal for job in now):
                return now
            await asyncio.sleep(0.1)

    async def manifest(self, job: Job) -> dict[str, Any]:
        """Of its video."""
        answer = await self.client.get(f"/jobs/{job.id}/content", params={"variant": "manifest"})
        told: dict[str, Any] = answer.json()
        return told

    async def events(self, job: Job) -> AsyncIterator[tuple[str, Job]]:
        """Its server-sent events as they arrive: kind, and the job as it was."""
        async with self.client.stream("GET", f"/jobs/{job.id}/events") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    event = JobEvent.model_validate_json(line.partition(":")[2])
                    yield event.event, event.job


@asynccontextmanager
async def gateway(folder: Path, *urls: str) -> AsyncIterator[Gateway]:
    """The gateway behind a real listener on loopback, ready."""
    folder.mkdir(exist_ok=True)
    database = f"sqlite:///{folder}/jobs.db"
    settings = Settings(database_url=database, artifacts=str(folder / "artifacts"), progress_interval_s=0)
    engine = TritonEngine(urls)
    app = create_app(engine, LiveModels(engine, await discover(urls, wait_s=300)), settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on"))
    serving = asyncio.create_task(server.serve())
    while not (server.started and engine.ready):
        assert not serving.done()
        await asyncio.sleep(0.02)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        async with httpx2.AsyncClient(base_url=address, timeout=60) as client:
            yield Gateway(client, database, folder / "artifacts", engine)
    finally:
        server.should_exit = True
        await serving


def steps_after_cancel(log: Path, job_id: str) -> int:
    """Steps a server made after it was told to stop a job, by its log."""
    text = log.read_text()
    asked = re.search(rf"job {job_id} is to stop, after step (\d+)", text)
    ended = re.search(rf"job {job_id} after step (\d+): cancelled", text)
    assert asked is not None, text[-2000:]
    assert ended is not None, text[-2000:]
    return int(ended[1]) - int(asked[1])

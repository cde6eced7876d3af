"""How much the gateway takes: the engine is a stand-in that sleeps, so nothing here says how fast videos are made.

    python -m benchmarks.gateway_load [--seconds 10] [--streams 1000] [--overload-seconds 30] [--json]

A server process of its own, SQLite, one client process. Measured: submissions a second (each a JPEG of 448x256 that
the gateway decodes in full), requests a second on routes that only answer JSON, open event streams, the 99th
percentile of a submission's time, and what an overload does: 429s, and the server's memory before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from model.catalog import ModelEntry
from model.params import Params
from model.tasks import TASKS
from serving.engine.protocol import Completed, EngineEvent, EngineRequest, PhaseStarted, Stepped

NOTE = "the engine is a stand-in that sleeps: these are figures of the gateway alone"
SIZE = (448, 256)
PROMISED = {"submits_per_s": 150, "json_per_s": 300, "streams": 1000, "p99_submit_ms": 150}
"""What issue 5 asks for, on 2 cores."""


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
        await asyncio.sleep(self.seconds)
        size = (request.params.width, request.params.height, request.params.num_frames, request.params.fps)
        yield Completed(b"\0\0\0\x08ftyp", "", "", b"", b"", *size, False, {"engine": "sleeping"})


def entry() -> ModelEntry:
    """A checkpoint's description without a checkpoint."""
    defaults = {
        "fps": 7,
        "motion_bucket_id": 127,
        "noise_aug_strength": 0.02,
        "min_guidance_scale": 1.0,
        "max_guidance_scale": 3.0,
        "num_inference_steps": 2,
        "solver": "euler",
        "schedule": "karras",
        "decode_chunk_size": 8,
        "resize_mode": "crop",
    }
    return ModelEntry("sleeping", Path("nowhere"), TASKS["image-to-video"], "0" * 12, (14,), 256, 448, 32, defaults)


def serve(port: int, folder: str, seconds: float, capacity: int, queue_limit: int) -> None:
    """The server's process."""
    import uvicorn

    from serving.gateway import Settings, create_app

    settings = Settings(
        database_url=f"sqlite:///{folder}/jobs.db", artifacts=f"{folder}/files", queue_limit=queue_limit
    )
    app = create_app(SleepingEngine(seconds, capacity), [entry()], settings)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


class Server:
    """A server in a process of its own, for as long as it is entered."""

    def __init__(self, *, seconds: float, capacity: int, queue_limit: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="gateway-load-")
        arguments = (self.port, self._folder.name, seconds, capacity, queue_limit)
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)

    async def __aenter__(self) -> Server:
        self._process.start()
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    if (await client.get(f"{self.url}/health/ready")).status_code == 200:
                        return self
                except httpx.TransportError:
                    await asyncio.sleep(0.1)

    async def __aexit__(self, *_: object) -> None:
        self._process.terminate()
        await asyncio.to_thread(self._process.join, 20)
        self._folder.cleanup()

    def memory_mib(self) -> float:
        """Resident memory of the server."""
        return float(psutil.Process(self._process.pid).memory_info().rss / 2**20)


async def drive(call: Callable[[], Awaitable[int]], callers: int, seconds: float) -> tuple[dict[int, int], list[float]]:
    """`callers` at once for so long: answers by status, and each one's time in seconds."""
    statuses: dict[int, int] = {}
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def one() -> None:
        while time.perf_counter() < until:
            before = time.perf_counter()
            status = await call()
            took.append(time.perf_counter() - before)
            statuses[status] = statuses.get(status, 0) + 1

    await asyncio.gather(*(one() for _ in range(callers)))
    return statuses, took


def p99_ms(took: list[float]) -> float:
    """The 99th percentile, in milliseconds."""
    return 1000 * sorted(took)[max(0, math.ceil(0.99 * len(took)) - 1)]


def photo() -> bytes:
    """A JPEG of 448x256 with detail in it."""
    ramp = np.linspace(0, 255, SIZE[0] * SIZE[1] * 3).reshape(SIZE[1], SIZE[0], 3)
    noise = np.random.default_rng(1).normal(0, 20, ramp.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def submitting(client: httpx.AsyncClient, picture: bytes) -> Callable[[], Awaitable[int]]:
    """One submission."""

    async def submit() -> int:
        files = {"image": ("still.jpg", picture, "image/jpeg")}
        return (await client.post("/generate/image-to-video", files=files)).status_code

    return submit


async def normal(seconds: float, streams: int) -> dict[str, Any]:
    """Submissions, JSON routes and streams, with room for all."""
    async with Server(seconds=0.05, capacity=64, queue_limit=1_000_000) as server:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            submit = submitting(client, photo())
            await drive(submit, 4, min(2.0, seconds))
            statuses, took = await drive(submit, 16, seconds)
            made = (await client.get("/jobs", params={"limit": 1})).json()["data"][0]

            async def look() -> int:
                return (await client.get(made["urls"]["self"])).status_code

            looks, _ = await drive(look, 16, seconds)
    return {
        "submits_per_s": round(statuses.get(202, 0) / seconds, 1),
        "submit_statuses": statuses,
        "p99_submit_ms": round(p99_ms(took), 1),
        "json_per_s": round(looks.get(200, 0) / seconds, 1),
        "streams": await streaming(streams),
    }


async def streaming(streams: int) -> int:
    """How many event streams of a running job are open at once, each having got its first event."""
    async with Server(seconds=3600, capacity=1, queue_limit=10) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            answer = await client.post("/generate/image-to-video", files={"image": ("x.jpg", photo(), "image/jpeg")})
        path = answer.json()["urls"]["events"]
        opened: list[asyncio.StreamWriter] = []

        async def open_one() -> bool:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            opened.append(writer)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            async with asyncio.timeout(120):
                await reader.readuntil(b"\ndata: ")
            return True

        got: list[bool | BaseException] = []
        for start in range(0, streams, 50):
            batch = [open_one() for _ in range(min(50, streams - start))]
            got += await asyncio.gather(*batch, return_exceptions=True)
        for writer in opened:
            writer.close()
    return sum(one is True for one in got)


async def overload(seconds: float) -> dict[str, Any]:
    """More than is taken, for so long: nearly all is refused, and the server grows no larger."""
    async with (
        Server(seconds=30, capacity=4, queue_limit=50) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        submit = submitting(client, photo())
        await drive(submit, 16, min(10.0, seconds / 3))
        before = server.memory_mib()
        statuses, took = await drive(submit, 16, seconds)
        after = server.memory_mib()
        refused = await client.post("/generate/image-to-video", files={"image": ("x.jpg", photo(), "image/jpeg")})
    return {
        "seconds": seconds,
        "statuses": statuses,
        "p99_ms": round(p99_ms(took), 1),
        "retry_after_s": refused.headers.get("retry-after"),
        "memory_mib": [round(before, 1), round(after, 1)],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="for each of the first measurements")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--overload-seconds", type=float, default=30, help="600 for what issue 5 asks")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    told: dict[str, Any] = {"note": NOTE, "cores": len(os.sched_getaffinity(0)), "picture": "x".join(map(str, SIZE))}
    told |= asyncio.run(normal(asked.seconds, asked.streams))
    told["overload"] = asyncio.run(overload(asked.overload_seconds))
    if asked.json:
        print(json.dumps(told, indent=2))
        return
    print(f"NOTE: {NOTE}; {told['cores']} cores, JPEG of {told['picture']} decoded in full, SQLite")
    for name, goal in PROMISED.items():
        print(f"{name:16} {told[name]:>10}   asked for: {'at most' if name.endswith('ms') else 'at least'} {goal}")
    print("overload:", json.dumps(told["overload"]))


if __name__ == "__main__":
    main()

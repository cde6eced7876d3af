"""A batch of many uploaded pictures: what the gateway's memory does, and how long uploads and the batch take.

    python -m benchmarks.upload_batch [--pictures 1000] [--megapixels 2] [--senders 4]

The gateway runs in a process of its own, on SQLite and a local folder, before an engine that sleeps. A few pictures are
sent first, so that what is loaded at the first one does not count. Every picture has bytes of its own (a JPEG of noise
and gradients, with a comment that counts). `memory_mib` is what resident memory grew by at most, sampled every 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import numpy as np
from PIL import Image
from stillmotion import batch_line
from stillmotion.types import Upload

from benchmarks.entry import run_main
from benchmarks.gateway_load_server import Server

_WARM: Final = 8
_SAMPLE_S: Final = 0.02


def picture(megapixels: float) -> bytes:
    """A JPEG with as much detail as a photograph's."""
    height = round((megapixels * 1e6 * 9 / 16) ** 0.5)
    width = round(height * 16 / 9)
    noise = np.random.default_rng(0).normal(0, 25, (height, width, 3))
    ramp = np.linspace(40, 215, width)[None, :, None]
    out = io.BytesIO()
    Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=92)
    return out.getvalue()


def numbered(jpeg: bytes, number: int) -> bytes:
    """The same pixels in other bytes: with a comment."""
    comment = str(number).encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


@dataclass
class Growth:
    """What the server's memory grew by, at most and in the end, in MiB."""

    most: float = 0.0
    end: float = 0.0
    seconds: float = 0.0


@asynccontextmanager
async def growth(server: Server) -> AsyncIterator[Growth]:
    """Watch the server's memory while the block runs."""
    found, before, began = Growth(), server.memory_mib(), time.monotonic()

    async def sample() -> None:
        while True:
            found.most = max(found.most, server.memory_mib() - before)
            await asyncio.sleep(_SAMPLE_S)

    sampling = asyncio.create_task(sample())
    try:
        yield found
    finally:
        sampling.cancel()
        found.seconds = time.monotonic() - began
        found.end = server.memory_mib() - before


async def send(client: httpx2.AsyncClient, jpeg: bytes, numbers: range, senders: int) -> list[Upload]:
    """Upload so many pictures, a few at once."""
    waiting = iter(numbers)
    uploads: list[Upload] = []

    async def sender() -> None:
        for number in waiting:
            answer = await client.post("/uploads", content=numbered(jpeg, number))
            answer.raise_for_status()
            uploads.append(Upload.model_validate(answer.json()))

    await asyncio.gather(*(sender() for _ in range(senders)))
    return uploads


async def render(client: httpx2.AsyncClient, uploads: list[Upload]) -> tuple[str, int]:
    """Submit them as one batch: its id, and the bytes of the request."""
    lines = [batch_line(str(row), upload, seed=row) for row, upload in enumerate(uploads)]
    body = "".join(f"{line.model_dump_json()}\n" for line in lines).encode()
    answer = await client.post("/batches", content=body, headers={"Content-Type": "application/jsonl"})
    answer.raise_for_status()
    return str(answer.json()["id"]), len(body)


async def measure(pictures: int, megapixels: float = 2.0, senders: int = 4) -> dict[str, Any]:
    """One measurement, JSON-ready."""
    jpeg = picture(megapixels)
    async with (
        Server(seconds=0.0, capacity=4, queue_limit=100) as server,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=600) as client,
    ):
        await render(client, await send(client, jpeg, range(-_WARM, 0), senders))
        async with growth(server) as uploading:
            uploads = await send(client, jpeg, range(pictures), senders)
        async with growth(server) as batching:
            batch_id, request_bytes = await render(client, uploads)
        async with growth(server) as running:
            while (batch := (await client.get(f"/batches/{batch_id}")).json())["status"] != "completed":
                await asyncio.sleep(0.2)
    return {
        "pictures": pictures,
        "picture_bytes": len(jpeg),
        "request_bytes": request_bytes,
        "completed": batch["counts"]["completed"],
        "uploads_a_second": round(pictures / uploading.seconds, 1),
        "batch_s": round(batching.seconds, 1),
        "memory_mib": {
            "uploading": round(uploading.most, 1),
            "batch": round(batching.most, 1),
            "running": round(running.most, 1),
            "left": round(uploading.end + batching.end + running.end, 1),
        },
    }


def main() -> None:
    """Parse the arguments and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--megapixels", type=float, default=2.0)
    parser.add_argument("--senders", type=int, default=4)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options.pictures, options.megapixels, options.senders)), indent=2))


if __name__ == "__main__":
    run_main(main)

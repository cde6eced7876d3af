"""What clients that mean no good cost the gateway: memory, connections, refusals, seconds until each is closed.

    python -m benchmarks.gateway_abuse [--unlimited] [--scale 1.0] [--only heads idle ...]

The gateway runs in a process of its own, before an engine that sleeps. `--unlimited` takes uvicorn's own protocol in
place of serving.gateway.connections, for comparison. Each line of the table is one abuse:

heads      three unfinished heads, 200 MB each, without a key
idle       1,100 connections that send nothing, and how a request fares beside them
drip       200 uploads at a byte a second
picture    a 50-megapixel RGBA PNG, three times
metadata   30 submissions with as much metadata as is accepted, and one with a key of 20 MB
flood      a key that fills the queue, and 52 submissions of another
locked     the database locked by another process for 40 seconds, six submissions meanwhile
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx2
from PIL import Image

from benchmarks.entry import run_main
from benchmarks.gateway_load_client import photo
from benchmarks.gateway_load_server import Server
from serving.jobs.database import Database
from serving.keys import KeyStore

_SUBMIT: Final = "/generate/image-to-video"
_LONGEST_S: Final = 45.0


async def _submit(client: httpx2.AsyncClient, image: bytes, **fields: Any) -> httpx2.Response:
    return await client.post(_SUBMIT, files={"image": ("x", image, "image/png")}, data=fields)


def _client(server: Server, key: str | None = None) -> httpx2.AsyncClient:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=90, headers=headers)


async def _closed_after(reader: asyncio.StreamReader, began: float) -> float | None:
    """Seconds until the server closed a connection; None if it did not."""
    try:
        async with asyncio.timeout(_LONGEST_S):
            await reader.read()
    except TimeoutError:
        return None
    except ConnectionError:
        pass
    return round(time.monotonic() - began, 1)


async def heads(server: Server, scale: float) -> dict[str, Any]:
    """Unfinished heads: bytes taken, and memory."""
    before, taken = server.memory_mib(), 0
    piece, most = b"a" * 65536, int(200e6 * scale)
    connections = []
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        connections.append(writer)
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        sent = 0
        try:
            while sent < most and not reader.at_eof():
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
        except ConnectionError:
            pass
        taken += sent
    memory = server.memory_mib() - before
    for writer in connections:
        writer.close()
    return {"sent_mb": round(taken / 1e6, 1), "memory_mib": round(memory, 1)}


async def idle(server: Server, scale: float) -> dict[str, Any]:
    """Idle connections: when they are closed, and a request beside them."""
    pairs = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(int(1100 * scale))]
    began = time.monotonic()
    async with _client(server) as client:
        answered = (await client.get("/health/live")).status_code
    seconds = await asyncio.gather(*(_closed_after(reader, began) for reader, _ in pairs))
    return {"request_beside": answered, "closed_after_s": _span(seconds)}


async def drip(server: Server, scale: float) -> dict[str, Any]:
    """Uploads at a byte a second: when they are closed."""
    head = b"POST /generate/image-to-video HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    pairs = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(int(200 * scale))]
    began = time.monotonic()

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while time.monotonic() - began < _LONGEST_S and not writer.is_closing():
            await asyncio.sleep(1)
            writer.write(b"a")

    sending = [asyncio.create_task(send(writer)) for _, writer in pairs]
    seconds = await asyncio.gather(*(_closed_after(reader, began) for reader, _ in pairs))
    for task in sending:
        task.cancel()
    for _, writer in pairs:
        writer.close()
    return {"closed_after_s": _span(seconds)}


def _span(seconds: list[float | None]) -> str:
    closed = [value for value in seconds if value is not None]
    left = len(seconds) - len(closed)
    return (f"{min(closed)} to {max(closed)}" if closed else "") + (f", {left} never" if left else "")


async def picture(server: Server, scale: float) -> dict[str, Any]:
    """A large picture: the server's memory at its most, and afterwards."""
    buffer = io.BytesIO()
    Image.new("RGBA", (10_000, int(5000 * scale)), (200, 10, 30, 128)).save(buffer, "PNG", compress_level=1)
    async with _client(server) as client:
        await _submit(client, photo())
        before, most, done = server.memory_mib(), 0.0, False

        async def watch() -> None:
            nonlocal most
            while not done:
                most = max(most, server.memory_mib())
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        statuses = [(await _submit(client, buffer.getvalue())).status_code for _ in range(3)]
        done = True
        await watching
    after = server.memory_mib() - before
    return {"statuses": statuses, "peak_mib": round(most - before, 1), "after_mib": round(after, 1)}


async def metadata(server: Server, scale: float) -> dict[str, Any]:
    """Much metadata: how the database grows."""
    most = {f"{number:02}" + "k" * 62: "v" * 512 for number in range(16)}
    begun = server.database_mib()
    async with _client(server) as client:
        count = max(1, int(30 * scale))
        accepted = [(await _submit(client, photo(), metadata=json.dumps(most))).status_code for _ in range(count)]
        grown = server.database_mib() - begun
        body = {"image": {"data": "AAAA"}, "metadata": {"k" * 20_000_000: "v"}}
        refused = (await client.post(_SUBMIT, json=body)).status_code
    return {"accepted": accepted.count(202), "database_mib": round(grown, 2), "key_of_20_mb": refused}


async def flood(server: Server, scale: float) -> dict[str, Any]:
    """One key's flood: refusals of another's submissions."""
    store = KeyStore(Database(server.database_url))
    keys = [str(store.create(name)[1]) for name in ("flood", "other")]
    await asyncio.sleep(2.5)
    async with _client(server, keys[0]) as flooding, _client(server, keys[1]) as other:
        first = Counter([(await _submit(flooding, photo())).status_code for _ in range(120)])
        second = Counter([(await _submit(other, photo())).status_code for _ in range(max(1, int(52 * scale)))])
    return {"flood": dict(first), "other_key": dict(second)}


async def locked(server: Server, scale: float) -> dict[str, Any]:
    """A locked database: what six submissions are answered."""
    blocker = sqlite3.connect(server.database_url.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    async with _client(server) as client:
        sending = [asyncio.create_task(_submit(client, photo())) for _ in range(6)]
        await asyncio.sleep(40 * scale)
        blocker.execute("ROLLBACK")
        answers = await asyncio.gather(*sending)
    return {
        "statuses": dict(Counter(answer.status_code for answer in answers)),
        "retry_after": sorted({answer.headers.get("retry-after", "none") for answer in answers}),
    }


ABUSES: Final[dict[str, Callable[[Server, float], Awaitable[dict[str, Any]]]]] = {
    "heads": heads,
    "idle": idle,
    "drip": drip,
    "picture": picture,
    "metadata": metadata,
    "flood": flood,
    "locked": locked,
}


async def measure(names: list[str], scale: float, *, limited: bool) -> None:
    """Each abuse against a server of its own, a JSON line each."""
    for name in names:
        async with Server(seconds=3600, capacity=1, queue_limit=100, limited=limited) as server:
            print(json.dumps({"abuse": name, "limited": limited, **await ABUSES[name](server, scale)}), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="What abuse costs the gateway.")
    parser.add_argument("--unlimited", action="store_true", help="uvicorn's own protocol")
    parser.add_argument("--scale", type=float, default=1.0, help="part of each abuse's size")
    parser.add_argument("--only", nargs="+", choices=list(ABUSES), default=list(ABUSES))
    options = parser.parse_args()
    asyncio.run(measure(options.only, options.scale, limited=not options.unlimited))


if __name__ == "__main__":
    run_main(main)

"""A load generator that costs next to nothing, since it shares the cores: requests made once, sent again and again."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from PIL import Image

SIZE: Final = (448, 256)
_LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_BOUNDARY: Final = "gateway-load"


@dataclass
class Answers:
    """What a measurement saw: answers by status, and each one's seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)

    def p99_ms(self) -> float:
        """The 99th percentile, in milliseconds."""
        return 1000 * sorted(self.took)[max(0, math.ceil(0.99 * len(self.took)) - 1)]


class Connection:
    """One keep-alive connection to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Send a whole request: status, head and body of its answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length.group(1))) if length else b""
        if b"connection: close" in head.lower():
            await self.close()
        return int(head[9:12]), head, body

    async def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def get(path: str) -> bytes:
    """A GET."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post_json(path: str, body: dict[str, Any]) -> bytes:
    """A POST of JSON."""
    return _post(path, "application/json", json.dumps(body).encode())


def post_picture(path: str, picture: bytes) -> bytes:
    """A POST of a multipart form with the picture alone."""
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="still.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    form = head.encode() + picture + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return _post(path, f"multipart/form-data; boundary={_BOUNDARY}", form)


def _post(path: str, kind: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def photo() -> bytes:
    """A JPEG of 448x256 with detail in it."""
    ramp = np.linspace(0, 255, SIZE[0] * SIZE[1] * 3).reshape(SIZE[1], SIZE[0], 3)
    noise = np.random.default_rng(1).normal(0, 20, ramp.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


async def drive(
    port: int,
    request: bytes,
    callers: int,
    seconds: float,
    *,
    every_s: float = math.inf,
    look: Callable[[], None] = lambda: None,
) -> Answers:
    """`callers` that send the same request again as soon as it was answered, for so long.

    Args:
        every_s, look: what is called so often meanwhile.
    """
    answers = Answers()
    until = time.perf_counter() + seconds

    async def one() -> None:
        connection = Connection(port)
        while (before := time.perf_counter()) < until:
            status, _, _ = await connection.send(request)
            answers.took.append(time.perf_counter() - before)
            answers.statuses[status] += 1
        await connection.close()

    async def watch() -> None:
        while True:
            await asyncio.sleep(every_s)
            look()

    watching = asyncio.create_task(watch()) if math.isfinite(every_s) else None
    await asyncio.gather(*(one() for _ in range(callers)))
    if watching is not None:
        watching.cancel()
    return answers


async def open_streams(port: int, path: str, count: int) -> tuple[int, list[asyncio.StreamWriter]]:
    """Open so many event streams: how many got their first event, and the connections, still open."""
    opened: list[asyncio.StreamWriter] = []

    async def open_one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        opened.append(writer)
        writer.write(get(path))
        async with asyncio.timeout(120):
            await reader.readuntil(b"\ndata: ")

    got = 0
    for start in range(0, count, 50):
        batch = [open_one() for _ in range(min(50, count - start))]
        answers = await asyncio.gather(*batch, return_exceptions=True)
        got += sum(answer is None for answer in answers)
    return got, opened

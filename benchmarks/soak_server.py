"""What the soak runs against: `stillmotion serve` in a process that is killed and started again, and webhook receivers.

The receivers are one that takes what it gets, one that always fails, and one that drips bytes and never ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx2
import psutil

from model.errors import StillmotionError
from serving.jobs.database import Database
from serving.keys import KeyStore

KEPT_S: Final = 360.0
"""Seconds until an ended job is removed: the store has a size at which it stays."""
_START_S: Final = 1200.0
"""Seconds until it must be ready: a machine may be busy with other work."""
_KEYS: Final = ("first", "second")


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment; sizes in MiB.

    Args:
        t: seconds since the soak began.
        life: how many times the server was started before.
        stored: jobs in the store.
    """

    t: float
    life: int
    rss: float
    files: int
    threads: int
    database: float
    artifacts: float
    stored: int

    @property
    def artifacts_per_job(self) -> float:
        """MiB of artifacts for each job in the store: what is left behind of removed ones raises it."""
        return self.artifacts / max(1, self.stored)


@dataclass
class ServeProcess:
    """`stillmotion serve` on SQLite, on one port for all its lives.

    Args:
        folder: of the job store, the artifacts and the log.
        models: what it serves.
    """

    folder: Path
    models: tuple[str, ...]
    port: int = 0
    life: int = -1
    alive: bool = False
    keys: list[str] = field(default_factory=list)
    _process: asyncio.subprocess.Process | None = None

    def prepare(self) -> None:
        """A free port, and two keys."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        store = KeyStore(Database(self._database_url))
        self.keys = [str(store.create(name)[1]) for name in _KEYS]

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def _database_url(self) -> str:
        return f"sqlite:///{self.folder}/jobs.db"

    async def start(self) -> None:
        """Start it; come back once it is ready. Raises StillmotionError."""
        self.life += 1
        settings = {
            "STILLMOTION_KEPT_S": str(KEPT_S),
            "STILLMOTION_LEASE_S": "10",
            "STILLMOTION_CHECKPOINT_EVERY_S": "2",
            "STILLMOTION_WEBHOOK_HTTP": "true",
            "STILLMOTION_WEBHOOK_ALLOW": "127.0.0.0/8",
            "STILLMOTION_WEBHOOK_SECRET": "whsec_" + "c29hay1zb2FrLXNvYWstc29hay1zb2FrIQ==",
            "STILLMOTION_QUEUE_LIMIT": "12",
        }
        arguments = ["serve", "--port", str(self.port), "--database-url", self._database_url, "--threads", "1"]
        arguments += ["--artifacts", str(self.folder / "artifacts")]
        for model in self.models:
            arguments += ["--model", model]
        with (self.folder / "log.txt").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cli", *arguments, stdout=log, stderr=log, env={**os.environ, **settings}
            )
        until = time.monotonic() + _START_S
        async with httpx2.AsyncClient(base_url=self.url) as client:
            while not await _is_ready(client):
                if time.monotonic() > until or self._process.returncode is not None:
                    raise StillmotionError(f"the server did not start; its words are in {self.folder / 'log.txt'}")
                await asyncio.sleep(0.2)
        self.alive = True

    async def kill(self) -> None:
        """SIGKILL."""
        self.alive = False
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.alive = False
        if self._process is None:
            return 0
        with suppress(ProcessLookupError):
            self._process.terminate()
        return await self._process.wait()

    def sample(self, t: float) -> Sample | None:
        """The process and its files now; None while it does not run."""
        if self._process is None or not self.alive:
            return None
        try:
            process = psutil.Process(self._process.pid)
            rss, files, threads = process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()
            stored = self._stored_jobs()
        except (psutil.Error, sqlite3.Error):
            return None
        database = sum(path.stat().st_size for path in self.folder.glob("jobs.db*")) / 2**20
        return Sample(t, self.life, rss, files, threads, database, _size_of(self.folder / "artifacts"), stored)

    def _stored_jobs(self) -> int:
        with closing(sqlite3.connect(f"file:{self.folder / 'jobs.db'}?mode=ro", uri=True)) as store:
            return int(store.execute("SELECT count(*) FROM jobs").fetchone()[0])


async def _is_ready(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/health/ready")).status_code == 200
    except httpx2.TransportError:
        return False


def _size_of(folder: Path) -> float:
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # removed meanwhile
                size += (Path(root) / name).stat().st_size
    return size / 2**20


class Receivers:
    """Three webhook receivers on loopback; what the good one got is counted by job and message."""

    def __init__(self) -> None:
        self.received: dict[str, Counter[str]] = {}
        self.requests: Counter[str] = Counter()
        self.urls: dict[str, str] = {}
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> Receivers:
        for name, handle in (("good", self._good), ("failing", self._failing), ("dripping", self._dripping)):
            server = await asyncio.start_server(handle, "127.0.0.1", 0)
            self._servers.append(server)
            self.urls[name] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()

    async def _read(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        """The message's id and body."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        return headers.get("webhook-id", ""), await reader.readexactly(int(headers.get("content-length", 0)))

    async def _good(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            message, body = await self._read(reader)
            job = json.loads(body)["data"]["id"]
            self.received.setdefault(job, Counter())[message] += 1
            self.requests["good"] += 1
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    async def _failing(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._read(reader)
            self.requests["failing"] += 1
            writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    async def _dripping(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._read(reader)
            self.requests["dripping"] += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(1)
        writer.close()

"""The soak's callers: jobs that are followed to their ends, and clients that mean no good.

Each job has a number among its labels and an Idempotency-Key, so that a submission that a kill cut off is sent again,
and a second job of the same number is a fault. Its follower looks at it until it has ended, reads its video, and
compares its hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
import numpy as np
from PIL import Image

from benchmarks.soak_server import Receivers, ServeProcess
from model.tasks import TASKS

_LOOK_S: Final = 2.0
_RETRY_S: Final = 1.0
_ABUSE_EVERY_S: Final = 5.0
_SIZES: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "image-to-video": ((64, 96), (64, 128), (128, 224)),
    "text-to-video": ((64, 64), (64, 128)),
    "frame-interpolation": ((64, 96), (128, 224)),
}


@dataclass
class Ledger:
    """What was sent and what became of it."""

    statuses: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    jobs: dict[int, str] = field(default_factory=dict)
    expected_webhooks: dict[str, str] = field(default_factory=dict)
    abuses: Counter[str] = field(default_factory=Counter)

    def note(self, answer: httpx2.Response, what: str) -> None:
        """Count an answer; any 5xx is a fault but a 503 that says when to come again."""
        self.statuses[f"{what} {answer.status_code}"] += 1
        if answer.status_code >= 500 and not (answer.status_code == 503 and "retry-after" in answer.headers):
            self.faults.append(f"{what} was answered {answer.status_code}: {answer.text[:200]}")


@dataclass
class Load:
    """Callers of one server.

    Args:
        together: jobs that are open at once, at most.
        seed: of what is drawn.
    """

    server: ServeProcess
    receivers: Receivers
    together: int
    seed: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    stopping: bool = False

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._number = 0
        self._pictures = [_picture(self._rng, size) for size in ((90, 60), (640, 480), (3000, 2000))]

    async def jobs(self) -> None:
        """Submit and follow jobs until `stopping`; come back when all have ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.together):
                group.create_task(self._caller())

    async def _caller(self) -> None:
        while not self.stopping:
            self._number += 1
            await self._one(self._number)
            await asyncio.sleep(self._rng.uniform(0, 1))

    async def _one(self, number: int) -> None:
        key = self.server.keys[number % len(self.server.keys)]
        headers = {"Authorization": f"Bearer {key}"}
        timeout = httpx2.Timeout(60)
        async with httpx2.AsyncClient(base_url=self.server.url, headers=headers, timeout=timeout) as client:
            job = await self._submit(client, number)
            if job is None:
                return
            self.ledger.jobs[number] = job["id"]
            streaming = asyncio.create_task(self._drop_stream(client, job["id"])) if number % 3 == 0 else None
            cancel_at = time.monotonic() + self._rng.uniform(0, 10) if number % 6 == 0 else None
            await self._follow(client, job["id"], cancel_at)
            if streaming is not None:
                streaming.cancel()
                await asyncio.gather(streaming, return_exceptions=True)

    async def _submit(self, client: httpx2.AsyncClient, number: int) -> dict[str, Any] | None:
        """The stored job; None where it was refused for good."""
        task = self._rng.choice(sorted(_SIZES))
        height, width = self._rng.choice(_SIZES[task])
        fields: dict[str, Any] = {
            "height": height,
            "width": width,
            "num_inference_steps": self._rng.randint(1, 4),
            "seed": number,
            "output_format": self._rng.choice(["mp4", "mp4", "webm", "gif"]),
            "priority": self._rng.choice(["normal", "normal", "high"]),
            "previews": "true" if self._rng.random() < 0.3 else "false",
            "metadata": json.dumps({"number": str(number)}),
        }
        hook = self._rng.choice([None, "good", "good", "failing", "dripping"])
        if hook is not None:
            fields["webhook"] = json.dumps({"url": self.receivers.urls[hook]})
        if task == "text-to-video":
            fields["prompt"] = "a boat"
        if task == "image-to-video" and number % 10 == 0:
            fields["interpolate"] = "true"
        files = {name: (name, self._rng.choice(self._pictures), "image/jpeg") for name in TASKS[task].pictures}
        while True:
            try:
                if files:
                    answer = await client.post(
                        f"/generate/{task}", data=fields, files=files, headers={"Idempotency-Key": f"job {number}"}
                    )
                else:
                    answer = await client.post(
                        f"/generate/{task}", json=_typed(fields), headers={"Idempotency-Key": f"job {number}"}
                    )
            except httpx2.TransportError:
                await asyncio.sleep(_RETRY_S)
                continue
            self.ledger.note(answer, "submit")
            if answer.status_code in (200, 202):
                job: dict[str, Any] = answer.json()
                if hook == "good":
                    self.ledger.expected_webhooks[job["id"]] = "sent"
                return job
            if answer.status_code not in (429, 503):
                self.ledger.faults.append(f"job {number} was refused: {answer.status_code} {answer.text[:300]}")
                return None
            await asyncio.sleep(min(5.0, float(answer.headers.get("retry-after", 1))))

    async def _follow(self, client: httpx2.AsyncClient, job_id: str, cancel_at: float | None) -> None:
        requested = False
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if cancel_at is not None and not requested and time.monotonic() >= cancel_at:
                    self.ledger.note(await client.post(f"/jobs/{job_id}/cancel"), "cancel")
                    requested = True
                answer = await client.get(f"/jobs/{job_id}")
                self.ledger.note(answer, "look")
                if answer.status_code == 503:
                    continue
                if answer.status_code != 200:
                    self.ledger.faults.append(f"{job_id} is lost: {answer.status_code}")
                    return
                job = answer.json()
                if job["status"] in ("queued", "in_progress"):
                    continue
                if job["status"] == "completed":
                    content = await client.get(f"/jobs/{job_id}/content")
                    self.ledger.note(content, "content")
                    if hashlib.sha256(content.content).hexdigest() != job["output"]["sha256"]:
                        self.ledger.faults.append(f"{job_id}'s video is not what its hash says")
                elif job["status"] != "cancelled" or cancel_at is None:
                    self.ledger.faults.append(f"{job_id} ended {job['status']}: {job['error']}")
                await self._check_events(client, job_id)
            except httpx2.TransportError:
                await asyncio.sleep(_RETRY_S)
                continue
            self.ledger.ends[job["status"]] += 1
            return

    async def _check_events(self, client: httpx2.AsyncClient, job_id: str) -> None:
        """Every event from the first one on: numbered without a gap, with one end."""
        answer = await client.get(f"/jobs/{job_id}/events")
        self.ledger.note(answer, "events")
        lines = answer.text.splitlines()
        numbers = [int(line[4:]) for line in lines if line.startswith("id: ")]
        ends = sum(line in ("event: completed", "event: failed", "event: cancelled") for line in lines)
        if numbers != list(range(1, len(numbers) + 1)) or ends != 1:
            self.ledger.faults.append(f"{job_id} has {ends} ends and the events {numbers[:5]}...{numbers[-3:]}")

    async def _drop_stream(self, client: httpx2.AsyncClient, job_id: str) -> None:
        """Follow the events for a while, and go away in the midst; again from the last one."""
        last = "0"
        while True:
            with suppress(httpx2.TransportError, TimeoutError):
                async with asyncio.timeout(self._rng.uniform(0.5, 4)):
                    async with client.stream(
                        "GET", f"/jobs/{job_id}/events", headers={"Last-Event-ID": last}
                    ) as answer:
                        self.ledger.statuses[f"stream {answer.status_code}"] += 1
                        async for line in answer.aiter_lines():
                            last = line[4:] if line.startswith("id: ") else last
                        return
            await asyncio.sleep(0.5)

    async def abuse(self) -> None:
        """One abuse after the other until `stopping`."""
        kinds = [
            self._long_head, self._idle, self._drip, self._label, self._event_id, self._bomb, self._deep, self._aborted,
        ]  # fmt: skip
        while not self.stopping:
            for kind in kinds:
                if self.stopping:
                    return
                with suppress(OSError, httpx2.TransportError, TimeoutError):
                    async with asyncio.timeout(30):
                        await kind()
                self.ledger.abuses[kind.__name__.strip("_")] += 1
                await asyncio.sleep(_ABUSE_EVERY_S)

    async def _send(self, head: bytes, pieces: int, piece: bytes, pause_s: float) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            writer.write(head)
            for _ in range(pieces):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        finally:
            writer.close()

    async def _long_head(self) -> None:
        await self._send(b"GET / HTTP/1.1\r\nX: ", 200, b"a" * 65536, 0)

    async def _idle(self) -> None:
        pairs = [await asyncio.open_connection("127.0.0.1", self.server.port) for _ in range(50)]
        await asyncio.sleep(3)
        for _, writer in pairs:
            writer.close()

    async def _drip(self) -> None:
        head = b"POST /generate/image-to-video HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n"
        await self._send(head + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n", 15, b"a", 1)

    async def _request(self, method: str, path: str, **kwargs: Any) -> None:
        key = {"Authorization": f"Bearer {self.server.keys[0]}"}
        headers = key | kwargs.pop("headers", {})
        async with httpx2.AsyncClient(base_url=self.server.url, timeout=25) as client:
            answer = await client.request(method, path, headers=headers, **kwargs)
        self.ledger.note(answer, "abuse")
        if answer.status_code < 400:
            self.ledger.faults.append(
                f"{method} {path} should have been refused, and was answered {answer.status_code}"
            )

    async def _label(self) -> None:
        await self._request(
            "POST", "/generate/image-to-video", json={"image": {"data": "AAAA"}, "metadata": {"k" * 10**7: "v"}}
        )

    async def _event_id(self) -> None:
        await self._request("GET", "/jobs/job_0/events", headers={"Last-Event-ID": str(2**63)})

    async def _bomb(self) -> None:
        bomb = io.BytesIO()
        Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
        await self._request(
            "POST", "/generate/image-to-video", files={"image": ("x.png", bomb.getvalue(), "image/png")}
        )

    async def _deep(self) -> None:
        data = {"metadata": "[" * 5000 + "]" * 5000}
        files = {"image": ("x.jpg", self._pictures[0], "image/jpeg")}
        await self._request("POST", "/generate/image-to-video", data=data, files=files)

    async def _aborted(self) -> None:
        head = b"POST /generate/image-to-video HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n"
        head += f"Authorization: Bearer {self.server.keys[0]}\r\n".encode()
        await self._send(head + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n", 8, b"a" * 65536, 0)

    async def count_doubles(self) -> None:
        """Look over the list of jobs now and then: a second one of the same number is a fault."""
        first_ids: dict[str, str] = {}
        while not self.stopping:
            await asyncio.sleep(10)
            for key in self.server.keys:
                with suppress(httpx2.TransportError):
                    async with httpx2.AsyncClient(base_url=self.server.url, timeout=30) as client:
                        answer = await client.get("/jobs?limit=100", headers={"Authorization": f"Bearer {key}"})
                    self.ledger.note(answer, "list")
                    if answer.status_code != 200:
                        continue
                    for job in answer.json()["data"]:
                        number = job["metadata"].get("number", job["id"])
                        if first_ids.setdefault(number, job["id"]) != job["id"]:
                            self.ledger.faults.append(
                                f"job {number} was made twice: {first_ids[number]} and {job['id']}"
                            )

    def check_webhooks(self) -> None:
        """Every job with a good receiver has sent its webhook: once or more often, and always the same message."""
        for job_id in self.ledger.expected_webhooks:
            messages = self.receivers.received.get(job_id, Counter())
            if len(messages) != 1:
                self.ledger.faults.append(f"{job_id} sent {len(messages)} messages to its receiver")


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    """A form's fields as JSON has them."""
    body = dict(fields, previews=fields["previews"] == "true", metadata=json.loads(fields["metadata"]))
    if "webhook" in body:
        body["webhook"] = json.loads(body["webhook"])
    return body


def _picture(rng: random.Random, size: tuple[int, int]) -> bytes:
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()

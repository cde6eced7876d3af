"""What the SDK's tests share: jobs as JSON, scripted servers, and a driver that only records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
from stillmotion import RetryPolicy
from stillmotion._flows import Close, Context, Emit, Flow, Read, Send, Sleep

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))


def job_json(status: str = "completed", job_id: str = "job_1", **changes: Any) -> dict[str, Any]:
    """A job as the service sends it."""
    job = {
        "id": job_id,
        "task": "image-to-video",
        "status": status,
        "phase": "denoise",
        "progress": 40,
        "step": 4,
        "total_steps": 10,
        "created_at": 1.0,
        "model": "mini-image-to-video",
        "model_version": "0123456789ab",
        "seed": 7,
        "params": {},
        "urls": {"self": "/jobs/1", "cancel": "/jobs/1/cancel", "events": "/jobs/1/events", "content": "/c"},
    }
    return job | changes


def output_json(sha256: str, size: int = 3) -> dict[str, Any]:
    """A job's `output`."""
    sizes = {"bytes": size, "width": 8, "height": 8, "num_frames": 2, "fps": 7}
    return {"url": "/c", "sha256": sha256, "frames_sha256": "0" * 64, **sizes}


def event_json(number: int, event: str = "step", status: str = "in_progress") -> dict[str, Any]:
    """A JobEvent."""
    return {"id": number, "event": event, "job": job_json(status, step=number)}


def event_bytes(number: int, event: str = "step", status: str = "in_progress") -> bytes:
    """The same in the stream."""
    return f"id: {number}\nevent: {event}\ndata: {json.dumps(event_json(number, event, status))}\n\n".encode()


def error_json(code: str = "out_of_range", param: str | None = "fps") -> dict[str, Any]:
    """An error's body."""
    return {"error": {"type": "x", "code": code, "message": "fps is wrong", "param": param, "request_id": "req_9"}}


class Broken(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that breaks off after these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        raise httpx2.ReadError("connection reset")

    async def __aiter__(self) -> Any:
        for piece in self:
            yield piece


class Script:
    """Answers requests one after another, and keeps them. An exception among the answers is raised."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Clock:
    """Time that passes only where a flow sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now


def context(clock: Clock, **policy: Any) -> Context:
    return Context("http://service", RetryPolicy(**policy), clock)


def drive(flow: Flow[Any], script: Script, clock: Clock) -> tuple[Any, list[Any]]:
    """Run a flow to its end without network or waiting: its result, and what it emitted."""
    emitted: list[Any] = []
    chunks: Iterator[bytes] = iter(())
    step: Any = lambda: next(flow)  # noqa: E731
    while True:
        try:
            command = step()
        except StopIteration as stop:
            return stop.value, emitted
        reply: Any = None
        try:
            match command:
                case Send(call):
                    request = httpx2.Request(
                        call.method, f"http://service/{call.path}", params=call.params, headers=call.headers
                    )
                    reply = script(request)
                    chunks = reply.iter_bytes()
                case Read():
                    reply = next(chunks, None)
                case Close():
                    chunks = iter(())
                case Sleep(seconds):
                    clock.sleeps.append(seconds)
                    clock.now += seconds
                case Emit(value):
                    emitted.append(value)
        except httpx2.RequestError as error:
            step = lambda error=error: flow.throw(error)  # noqa: E731
            continue
        step = lambda reply=reply: flow.send(reply)  # noqa: E731

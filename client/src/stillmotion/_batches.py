"""Batches: the lines they are made of, their requests, and the flows that wait for them and read their results."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import httpx2
from pydantic import ValidationError

from stillmotion import errors
from stillmotion._calls import Call, idempotent, segment
from stillmotion._flows import Close, Context, Emit, Flow, Read, Sleep, ask, send
from stillmotion._image import ImageSource, read_image
from stillmotion._settings import json_fields
from stillmotion.types import Batch, BatchLine, BatchResult, Upload

_PATIENCE_S = 900.0
"""Every picture of a batch is decoded before its answer comes."""


def batch_line(
    custom_id: str,
    image: ImageSource | None = None,
    last_image: ImageSource | None = None,
    *,
    task: str = "image-to-video",
    **settings: Any,
) -> BatchLine:
    """One line of a batch.

    Args:
        custom_id: your own name for it, unique in the batch; its result bears it.
        image, last_image: as in `Client.generate`; what the task has.
        task: image-to-video, text-to-video (give `prompt`), frame-interpolation or multi-view.
        settings: the fields of the task's request, `priority` and `reuse` aside.

    Raises:
        ValueError: no such task.
        OSError: a picture cannot be read.
    """
    pictures = {"image": image, "last_image": last_image}
    body: dict[str, Any] = {name: _inline(picture) for name, picture in pictures.items() if picture is not None}
    line: Mapping[str, Any] = {
        "custom_id": custom_id,
        "url": f"/generate/{task}",
        "body": body | json_fields(settings),
    }
    return BatchLine.model_validate(line)


def _inline(picture: ImageSource) -> dict[str, str]:
    if isinstance(picture, Upload):
        return {"upload": picture.id}
    return {"data": base64.b64encode(read_image(picture).data).decode()}


def create(lines: Iterable[BatchLine], idempotency_key: str | None) -> Call:
    """Submit lines."""
    body = b"".join(f"{line.model_dump_json()}\n".encode() for line in lines)
    headers = idempotent(idempotency_key) | {"Content-Type": "application/jsonl"}
    return Call("POST", "batches", headers=headers, content=body, patience_s=_PATIENCE_S)


def get(batch_id: str) -> Call:
    """A batch's state."""
    return Call("GET", _path(batch_id))


def cancel(batch_id: str) -> Call:
    """Stop a batch."""
    return Call("POST", f"{_path(batch_id)}/cancel", headers=idempotent(None))


def _path(batch_id: str) -> str:
    return f"batches/{segment(batch_id, 'batch')}"


def poll(context: Context, identity: str, timeout: float | None, interval: float | None) -> Flow[Batch]:
    """Ask for the batch until all its rows have ended; the wait grows from 0.5 s to 10 s unless `interval` fixes it.

    Raises:
        BatchTimeout: they did not end in `timeout` seconds.
    """
    start, wait = context.clock(), interval if interval is not None else 0.5
    while True:
        batch: Batch = yield from ask(context, get(identity), Batch)
        if batch.status == "completed":
            return batch
        if timeout is not None:
            left = timeout - (context.clock() - start)
            if left <= 0:
                raise errors.BatchTimeout(batch, timeout)
            wait = min(wait, left)
        yield Sleep(wait)
        wait = interval if interval is not None else min(10.0, wait * 1.5)


def results(context: Context, identity: str) -> Flow[None]:
    """Emit each row that has ended, once; a broken transfer is begun again, and what came before left out.

    Raises:
        APIError: the service refuses.
        APIConnectionError: the transfer broke more often in a row than the policy retries.
        UnexpectedAnswer: what came is no result of a batch.
    """
    row_numbers: set[int] = set()
    failures = 0
    while True:
        yield from send(context, Call("GET", f"{_path(identity)}/results"), stream=True)
        rest = b""
        try:
            while (chunk := (yield Read())) is not None:
                *whole, rest = (rest + chunk).split(b"\n")
                for result in map(_result, whole):
                    if result.row not in row_numbers:
                        row_numbers.add(result.row)
                        failures = 0
                        yield Emit(result)
            return
        except httpx2.RequestError as error:
            cause = errors.from_transport(error, context.address)
            cause.__cause__ = error
        yield Close()
        wait = context.retry.delay(failures)
        if wait is None:
            raise cause
        failures += 1
        yield Sleep(wait)


def _result(line: bytes) -> BatchResult:
    try:
        return BatchResult.model_validate_json(line)
    except ValidationError as error:
        raise errors.UnexpectedAnswer("a line of the results is no BatchResult", code="unexpected_answer") from error

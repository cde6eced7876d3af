"""Reading a batch: JSON lines become checked orders, all of them or none.

The first line with a fault is named in the error, as `line 3: fps ...`, and nothing is kept of the batch.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final, NoReturn

from fastapi import Request
from pydantic import ValidationError
from stillmotion.types import BatchLine

from model.errors import InvalidRequest, StillmotionError
from model.tasks import TASKS
from serving.gateway.errors import Problem, first_problem
from serving.gateway.intake import Order
from serving.gateway.routes.generate import order_of
from serving.gateway.submission import read_json

JSON_LINES: Final = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")


async def read_batch(request: Request, most_rows: int) -> list[tuple[BatchLine, Order]]:
    """Read the request's body.

    Raises:
        Problem: 415 for another content type, 413 for more rows than `most_rows`.
        InvalidRequest: a line is at fault; `param` names it and the field.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in JSON_LINES:
        raise Problem(415, "unsupported_media_type", f"send {JSON_LINES[0]}: one JSON object a line")
    lines = [line for line in (await request.body()).split(b"\n") if line.strip()]
    if not lines:
        raise InvalidRequest("the batch is empty: send one JSON object a line", code="missing_field")
    if len(lines) > most_rows:
        raise Problem(413, "batch_too_large", f"a batch may have {most_rows} rows, not {len(lines)}; split it")
    rows = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        row = _read_line(number, line)
        if row[0].custom_id in seen:
            first = seen[row[0].custom_id]
            message = f"line {number}: custom_id {row[0].custom_id!r} was used in line {first} already"
            raise InvalidRequest(message, code="duplicate_field", param=f"line {number}: custom_id")
        seen[row[0].custom_id] = number
        rows.append(row)
    return rows


def _read_line(number: int, line: bytes) -> tuple[BatchLine, Order]:
    try:
        parsed = BatchLine.model_validate_json(line)
    except ValidationError as error:
        at_fault(number, first_problem(error, "a batch's line"))
    if "priority" in parsed.body:
        problem = InvalidRequest("a batch's rows are offline work; leave priority out", param="priority")
        at_fault(number, problem)
    task = TASKS[parsed.url.rpartition("/")[2]]
    try:
        order = order_of(read_json(json.dumps(parsed.body).encode(), task), task.name)
    except InvalidRequest as error:
        at_fault(number, error)
    return parsed, replace(order, priority="offline")


def at_fault(number: int, error: StillmotionError) -> NoReturn:
    """Raise the error again, naming the line (from 1) that caused it."""
    param = f"line {number}" if error.param is None else f"line {number}: {error.param}"
    raise InvalidRequest(f"line {number}: {error.message}", code=error.code, param=param) from error

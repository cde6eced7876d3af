"""Batches: many generations in one request, run when nobody else needs the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse
from stillmotion.types import Batch

from model.errors import InvalidRequest
from serving.background import run_in_thread
from serving.gateway.auth import CallerDep, IdempotencyKey, Submitter, repeat_of
from serving.gateway.openapi import error_responses
from serving.gateway.requests import JSON_LINES, at_fault, read_batch
from serving.gateway.services import Services, ServicesDep
from serving.gateway.submit import JobRequest, prepare
from serving.jobs.admission import hash_body
from serving.jobs.batches import NewBatch
from serving.jobs.dispatcher import QUEUE_TOPIC
from serving.jobs.errors import BatchNotFound, UploadNotFound
from serving.jobs.records import BatchPlace, NewJob
from serving.keys import Caller

router = APIRouter(prefix="/batches", tags=["batches"])
_PAGE: Final = 100
_RESULTS: Final[dict[str, Any]] = {JSON_LINES[0]: {"schema": {"type": "string"}}}
_LINES: Final[dict[str, Any]] = {kind: {"schema": {"type": "string"}} for kind in JSON_LINES}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {"required": True, "description": "One BatchLine a line.", "content": _LINES}
}


@router.post("", status_code=202, responses=error_responses(400, 409, 413, 415, 429, 503, 507), openapi_extra=_BODY)
async def create_batch(request: Request, services: ServicesDep, caller: Submitter, key: IdempotencyKey = None) -> Batch:
    """Submit many generations: JSON lines, each `{"custom_id", "url": "/generate/...", "body": {...}}`.

    All rows are stored, or, if a line has a fault, none. They wait and run as work of the offline class: in idle
    capacity only, yielding to every other job.
    """
    services.check_accepting()
    rows = await read_batch(request, services.settings.batch_rows)
    sent = [{"custom_id": line.custom_id, "url": line.url, "body": line.body} for line, _ in rows]
    repeat = repeat_of(caller, key, {"batch": hash_body({"rows": sent})})
    previous = await run_in_thread(
        services.batches.admit,
        len(rows),
        services.settings.offline_limit,
        caller.owner,
        repeat,
        caller.max_jobs,
        caller.weight,
    )
    if previous is not None:
        return previous
    batch_id = f"batch_{uuid4().hex}"
    jobs: list[NewJob] = []
    is_new = False
    try:
        for first in range(0, len(rows), services.settings.decoders):
            some = list(enumerate(rows))[first : first + services.settings.decoders]
            places = [(BatchPlace(batch_id, row, line.custom_id), request) for row, (line, request) in some]
            prepared = await asyncio.gather(
                *(_prepare_row(services, caller, place, request) for place, request in places), return_exceptions=True
            )
            jobs += [one for one in prepared if isinstance(one, NewJob)]
            for one in prepared:
                if isinstance(one, BaseException):
                    raise one
        new = NewBatch(id=batch_id, owner=caller.owner, jobs=jobs, repeat=repeat, quota=caller.max_jobs)
        batch, is_new = await run_in_thread(services.batches.create, new, services.settings.offline_limit)
    finally:
        if not is_new:
            for job in jobs:
                await run_in_thread(services.artifacts.remove, job.id)
    if is_new:
        await services.keys.charge(caller, len(rows) - 1)
    services.notifier.notify(QUEUE_TOPIC)
    return batch


@router.get("/{batch_id}", responses=error_responses(404))
async def get_batch(batch_id: str, services: ServicesDep, caller: CallerDep) -> Batch:
    """A batch as it is now: how many of its rows have which status."""
    return await run_in_thread(services.batches.get, batch_id, caller.owner)


@router.get(
    "/{batch_id}/results",
    response_class=StreamingResponse,
    responses={
        200: {"description": "One BatchResult a line", "content": {JSON_LINES[0]: {"schema": {"type": "string"}}}},
        **error_responses(404),
    },
)
async def get_results(batch_id: str, services: ServicesDep, caller: CallerDep) -> StreamingResponse:
    """The rows that have ended so far, one a line in the order they were sent; all of them once it is completed."""
    await run_in_thread(services.batches.get, batch_id, caller.owner)
    return StreamingResponse(_results(services, batch_id, caller.owner), media_type=JSON_LINES[0])


@router.post("/{batch_id}/cancel", responses=error_responses(404, 409))
async def cancel_batch(batch_id: str, services: ServicesDep, caller: CallerDep, key: IdempotencyKey = None) -> Batch:
    """Stop a batch: what waits at once, what runs at the next step boundary; rows that have ended stay as they are."""
    repeat = repeat_of(caller, key, {"cancel": batch_id})
    batch, job_ids = await run_in_thread(services.batches.cancel, batch_id, caller.owner, repeat)
    for job_id in job_ids:
        services.dispatcher.cancel(job_id)
        services.notifier.notify(job_id)
    return batch


async def _prepare_row(services: Services, caller: Caller, batch_row_: BatchPlace, job_request: JobRequest) -> NewJob:
    """Check one row against its checkpoint, and store its files."""
    try:
        return replace(await prepare(services, caller, job_request), batch=batch_row_)
    except (InvalidRequest, UploadNotFound) as error:
        at_fault(batch_row_.row + 1, error)


def _results(services: Services, batch_id: str, owner: str) -> Iterator[str]:
    """Lines, read page by page; a batch removed meanwhile ends them."""
    after = -1
    try:
        while page := services.batches.results(batch_id, after, _PAGE, owner):
            yield "".join(f"{line.model_dump_json()}\n" for line in page)
            after = page[-1].row
    except BatchNotFound:
        return

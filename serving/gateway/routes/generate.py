"""Submission: a request becomes a stored job, or an error and nothing."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import JSONResponse
from stillmotion.types import Job

from model.tasks import FRAME_INTERPOLATION, IMAGE_TO_VIDEO, MULTI_VIEW, TEXT_TO_VIDEO, TaskSpec
from serving.background import run_in_thread
from serving.gateway.auth import Submitter
from serving.gateway.errors import Problem
from serving.gateway.openapi import error_responses, submission_body
from serving.gateway.requests import read_submission, to_job_request
from serving.gateway.services import Services, ServicesDep
from serving.gateway.settings import MAX_WAIT_S
from serving.gateway.submit import submit
from serving.jobs.notifier import wait_notified
from serving.keys import Caller

router = APIRouter(prefix="/generate", tags=["generate"])
_WAIT: Final = re.compile(r"\s*wait\s*=\s*\"?([^\",;]*)\"?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SubmissionContext:
    """The parameters that every submitting route shares."""

    request: Request
    services: Services
    caller: Caller
    prefer: str | None
    idempotency_key: str | None


async def _context(
    request: Request,
    services: ServicesDep,
    caller: Submitter,
    prefer: Annotated[str | None, Header(description="wait=N holds the answer for up to N <= 60 seconds")] = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            description="a repeat with the same key makes no second job",
        ),
    ] = None,
) -> SubmissionContext:
    return SubmissionContext(request, services, caller, prefer, idempotency_key)


Submitted = Annotated[SubmissionContext, Depends(_context)]


def _documented(task: TaskSpec) -> dict[str, Any]:
    """What the four routes' decorators have in common."""
    return {
        "status_code": 202,
        "response_model": Job,
        "responses": {
            200: {
                "model": Job,
                "description": "The job has ended within the time of `Prefer: wait=N`, or is reused",
            },
            202: {"model": Job, "description": "The job is stored and waits or runs; `Location` is where to follow it"},
            **error_responses(400, 404, 409, 413, 415, 429, 503, 507),
        },
        "openapi_extra": submission_body(task),
    }


@router.post("/image-to-video", **_documented(IMAGE_TO_VIDEO))
async def image_to_video(context: Submitted) -> JSONResponse:
    """Make a short video of a still.

    Answers 202 with the job at once. With `Prefer: wait=N` the answer comes when the job has ended (200; its
    status says how) or after N seconds (202).
    """
    return await _answer(context, IMAGE_TO_VIDEO)


@router.post("/text-to-video", **_documented(TEXT_TO_VIDEO))
async def text_to_video(context: Submitted) -> JSONResponse:
    """Make a short video of a prompt. Answers as `/generate/image-to-video` does."""
    return await _answer(context, TEXT_TO_VIDEO)


@router.post("/frame-interpolation", **_documented(FRAME_INTERPOLATION))
async def frame_interpolation(context: Submitted) -> JSONResponse:
    """Make the frames between two stills. Answers as `/generate/image-to-video` does."""
    return await _answer(context, FRAME_INTERPOLATION)


@router.post("/multi-view", **_documented(MULTI_VIEW))
async def multi_view(context: Submitted) -> JSONResponse:
    """Make an orbit around the object in a still. Answers as `/generate/image-to-video` does."""
    return await _answer(context, MULTI_VIEW)


async def _answer(context: SubmissionContext, task: TaskSpec) -> JSONResponse:
    wait_s = _parse_wait(context.prefer)
    services, caller = context.services, context.caller
    services.check_accepting()
    try:
        submission = await read_submission(context.request, task)
        job, origin = await submit(services, caller, to_job_request(submission, task.name), context.idempotency_key)
    finally:
        await context.request.close()
    if wait_s:
        job = await _wait(services, caller, job, wait_s)
    headers = {"Location": job.urls.self}
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
    if origin == "repeated":
        headers["Idempotent-Replayed"] = "true"
    if origin == "reused":
        headers["Job-Reused"] = "true"
    status = 200 if job.is_terminal and (wait_s is not None or origin == "reused") else 202
    return JSONResponse(job.model_dump(mode="json"), status, headers)


def _parse_wait(prefer: str | None) -> int | None:
    """Seconds to wait, None if the caller does not ask; other preferences are not ours (RFC 7240)."""
    match = next(filter(None, map(_WAIT.match, (prefer or "").split(","))), None)
    if match is None:
        return None
    text = match.group(1).strip()
    if not text.isdecimal() or not text.isascii() or len(text) > 9 or int(text) > MAX_WAIT_S:
        raise Problem(
            422, "out_of_range", f"Prefer: wait={text} must be from 0 to {MAX_WAIT_S} seconds", param="Prefer"
        )
    return int(text)


async def _wait(services: Services, caller: Caller, job: Job, seconds: float) -> Job:
    deadline = time.monotonic() + seconds
    with services.notifier.subscribe(job.id) as notified:
        while not job.is_terminal and (left := deadline - time.monotonic()) > 0:
            notified.clear()
            job = await run_in_thread(services.store.get, job.id, caller.owner)
            if not job.is_terminal:
                await wait_notified(notified, min(left, 1.0))
    return job

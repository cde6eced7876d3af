"""Submission: a request becomes a stored job, or an error and nothing."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import asdict, fields
from typing import Annotated, Final
from uuid import uuid4

from fastapi import APIRouter, Header, Request
from starlette.responses import JSONResponse
from stillmotion.types import Job

from model.image import ImageLimits, open_picture, to_png
from model.params import ImageToVideoParams
from serving.gateway.documented import errors
from serving.gateway.errors import Problem
from serving.gateway.openapi import submission_body
from serving.gateway.services import Parts, Services
from serving.gateway.settings import MAX_WAIT_S
from serving.gateway.submission import Submission, read_submission
from serving.jobs.bell import wait_heard
from serving.jobs.dispatcher import QUEUE_TOPIC
from serving.jobs.idempotency import hash_body
from serving.jobs.records import NewJob, input_names
from serving.jobs.threads import in_thread

router = APIRouter(prefix="/generate", tags=["generate"])
_IMAGE_TO_VIDEO: Final = "image-to-video"
_RANDOM_SEEDS: Final = 2**32
"""Seeds drawn here stay exact in JavaScript too."""
_WAIT: Final = re.compile(r"\s*wait\s*=\s*\"?([^\",;]*)\"?", re.IGNORECASE)
_SETTINGS: Final = frozenset(field.name for field in fields(ImageToVideoParams)) - {"seed"}


@router.post(
    "/image-to-video",
    status_code=202,
    response_model=Job,
    responses={
        200: {"model": Job, "description": "The job has ended within the time of `Prefer: wait=N`"},
        202: {"model": Job, "description": "The job is stored and waits or runs; `Location` is where to follow it"},
        **errors(400, 409, 413, 415, 429, 503, 507),
    },
    openapi_extra=submission_body(),
)
async def image_to_video(
    request: Request,
    parts: Parts,
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
) -> JSONResponse:
    """Make a short video of a still.

    Answers 202 with the job at once. With `Prefer: wait=N` the answer comes when the job has ended (200; its
    status says how) or after N seconds (202).
    """
    wait_s = _parse_wait(prefer)
    parts.check_accepting()
    submission = await read_submission(request, _IMAGE_TO_VIDEO)
    job, is_new = await submit(parts, submission, idempotency_key)
    if wait_s:
        job = await _wait(parts, job, wait_s)
    headers = {"Location": job.urls.self}
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
    if not is_new:
        headers["Idempotent-Replayed"] = "true"
    status = 200 if wait_s is not None and job.is_terminal else 202
    return JSONResponse(job.model_dump(mode="json"), status, headers)


async def submit(parts: Services, submission: Submission, idempotency_key: str | None) -> tuple[Job, bool]:
    """Check a submission against its checkpoint, store picture and job, and wake the dispatcher.

    Returns:
        The job, and whether it is new: False if the idempotency key had already made it.
    """
    asked = submission.fields.model_dump(mode="json")
    entry = parts.model(submission.fields.model, _IMAGE_TO_VIDEO)
    seed = submission.fields.seed
    settings = {name: value for name, value in asked.items() if name in _SETTINGS}
    params = entry.resolve(settings, secrets.randbelow(_RANDOM_SEEDS) if seed is None else seed)
    body_hash = hash_body({"task": _IMAGE_TO_VIDEO, **asked}, submission.image)
    known = await in_thread(parts.store.admit, idempotency_key, body_hash, parts.settings.queue_limit)
    if known is not None:
        return known, False
    new = NewJob(
        id=f"job_{uuid4().hex}",
        task=_IMAGE_TO_VIDEO,
        model=entry.name,
        model_version=entry.version,
        seed=params.seed,
        params={**asdict(params), "output_format": submission.fields.output_format},
        total_steps=params.num_inference_steps,
        output_format=submission.fields.output_format,
        priority=submission.fields.priority,
        metadata=submission.fields.metadata,
        body_hash=body_hash,
        idempotency_key=idempotency_key,
    )
    picture = await in_thread(_clean_picture, submission.image, parts.settings.image_limits)
    job, is_new = await in_thread(_store, parts, new, picture)
    parts.bell.ring(QUEUE_TOPIC)
    return job, is_new


def _clean_picture(data: bytes, limits: ImageLimits) -> bytes:
    return to_png(open_picture(data, limits=limits))


def _store(parts: Services, new: NewJob, picture: bytes) -> tuple[Job, bool]:
    """The picture first, then the row: a job in the store always has its picture."""
    is_new = False
    try:
        parts.artifacts.write(new.id, input_names(1)[0], picture, "image/png")
        job, is_new = parts.store.create(new, parts.settings.queue_limit)
    finally:
        if not is_new:
            parts.artifacts.remove(new.id)
    return job, is_new


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


async def _wait(parts: Services, job: Job, seconds: float) -> Job:
    deadline = time.monotonic() + seconds
    with parts.bell.listen(job.id) as heard:
        while not job.is_terminal and (left := deadline - time.monotonic()) > 0:
            heard.clear()
            job = await in_thread(parts.store.get, job.id)
            if not job.is_terminal:
                await wait_heard(heard, min(left, 1.0))
    return job

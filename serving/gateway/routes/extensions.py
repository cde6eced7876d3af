"""Clips made longer: by our own route, and by OpenAI's in both of its spellings."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse
from stillmotion.types import Job

from model.errors import InvalidRequest
from serving.gateway.auth import IdempotencyKey, Submitter
from serving.gateway.extensions import extend, find_job, read_extension
from serving.gateway.openai_schema import Video, video
from serving.gateway.openapi import error_responses, extension_body
from serving.gateway.services import ServicesDep

router = APIRouter()
_REFUSALS = (400, 404, 409, 413, 415, 429, 503, 507)
_VIDEO: dict[str, Any] = {"response_model": Video, "tags": ["OpenAI-compatible"]}


@router.post(
    "/jobs/{job_id}/extend",
    status_code=202,
    response_model=Job,
    responses={202: {"model": Job}, **error_responses(*_REFUSALS)},
    openapi_extra=extension_body(named=False),
    tags=["jobs"],
)
async def extend_job(
    job_id: str, request: Request, services: ServicesDep, caller: Submitter, key: IdempotencyKey = None
) -> JSONResponse:
    """Make a job's clip longer: another job, with the same settings, seed and pictures, whose clip begins the same."""
    await find_job(services, caller, job_id)  # before the body: another's job is answered as none is
    form, other = await read_extension(request)
    _check_named(job_id, other)
    job, origin = await extend(services, caller, job_id, form, key)
    headers = {"Location": job.urls.self} | ({} if origin == "new" else {"Idempotent-Replayed": "true"})
    return JSONResponse(job.model_dump(mode="json"), 202, headers)


@router.post(
    "/v1/videos/extensions",
    responses={200: {"model": Video}, **error_responses(*_REFUSALS)},
    openapi_extra=extension_body(named=True),
    **_VIDEO,
)
async def extend_named_video(
    request: Request, services: ServicesDep, caller: Submitter, key: IdempotencyKey = None
) -> JSONResponse:
    """Make the video that the body names longer."""
    form, video_id = await read_extension(request)
    if video_id is None:
        raise InvalidRequest("video is required: an object with the id of a video", code="missing_field", param="video")
    job, _ = await extend(services, caller, video_id, form, key)
    return JSONResponse(video(job, request).model_dump(mode="json"))


@router.post(
    "/v1/videos/{video_id}/extensions",
    responses={200: {"model": Video}, **error_responses(*_REFUSALS)},
    openapi_extra=extension_body(named=False),
    **_VIDEO,
)
async def extend_video(
    video_id: str, request: Request, services: ServicesDep, caller: Submitter, key: IdempotencyKey = None
) -> JSONResponse:
    """Make a video longer."""
    await find_job(services, caller, video_id)  # before the body: another's job is answered as none is
    form, other = await read_extension(request)
    _check_named(video_id, other)
    job, _ = await extend(services, caller, video_id, form, key)
    return JSONResponse(video(job, request).model_dump(mode="json"))


def _check_named(in_path: str, in_body: str | None) -> None:
    if in_body not in (None, in_path):
        raise InvalidRequest("video is another one than the path's; leave it out", param="video")

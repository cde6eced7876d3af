"""The routes that OpenAI's stock clients call, under /v1: the same jobs in their words (docs/openai.md).

POST /v1/videos is a form, with parts or without, as the clients send it; or the same as JSON.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from stillmotion.types import Job, Variant

from model.errors import InvalidRequest
from serving.background import run_in_thread
from serving.gateway.auth import CallerDep, IdempotencyKey, Submitter
from serving.gateway.errors import Problem
from serving.gateway.openai_request import VideoOrder, read_video_order
from serving.gateway.openai_schema import Model, Models, Video, VideoDeleted, VideoList, job_request, video
from serving.gateway.openapi import error_responses, video_body
from serving.gateway.routes.content import CONTENT_RESPONSES, REDIRECT, Conditions, file_answer
from serving.gateway.routes.jobs import cancel_job
from serving.gateway.services import Services, ServicesDep
from serving.gateway.submit import JobRequest, submit
from serving.jobs.dispatcher import QUEUE_TOPIC
from serving.jobs.notifier import wait_notified
from serving.jobs.reuse import Origin
from serving.keys import Caller

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
_VIDEO_TYPES: Final = ("video/mp4", "video/webm", "image/gif")
_LOOK_AGAIN_S: Final = 1.0
"""How often, at least, a caller who waits is looked after."""
_POLL: Final = {"openai-poll-after-ms": "500"}
"""How soon the stock client shall ask again; it waits a second by default."""
_VARIANTS: Final[dict[str, Variant]] = {
    "video": "video",
    "thumbnail": "thumbnail",
    "spritesheet": "frames",
    "manifest": "manifest",
}
VideoId = Annotated[str, Path(description="the id of a video, which is a job's")]


class VideoQuery(BaseModel):
    """Which videos to list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, description="begin behind this video")
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"


class VideoContentQuery(BaseModel):
    """Which file."""

    model_config = ConfigDict(extra="forbid")

    variant: Literal["video", "thumbnail", "spritesheet", "manifest"] = Field(
        "video", description="spritesheet: a contact sheet of every frame"
    )
    video_id: str | None = Field(None, description="the path's id once more, as LiteLLM's client sends it")
    redirect: bool = Field(False, description=REDIRECT)


@router.post(
    "/videos",
    responses={200: {"model": Video}, **error_responses(400, 404, 409, 413, 415, 429, 503, 507)},
    response_model=Video,
    openapi_extra=video_body(),
)
async def create_video(
    request: Request,
    services: ServicesDep,
    caller: Submitter,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Make a video: of `input_reference` where there is one, else of the prompt alone."""
    services.check_accepting()
    job, _ = await _submit(services, caller, request, idempotency_key)
    return JSONResponse(video(job, request).model_dump(mode="json"), 200, _POLL)


@router.post(
    "/videos/sync",
    response_class=Response,
    responses={
        200: {
            "description": "The finished video",
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _VIDEO_TYPES},
        },
        **error_responses(400, 404, 409, 413, 415, 429, 500, 503, 507),
    },
    openapi_extra=video_body(),
)
async def create_video_sync(
    request: Request, services: ServicesDep, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a video, and answer with the file once it is done; who goes away before has the job cancelled.

    `X-Video-Id` is the job's id, under which it remains to be found.
    """
    services.check_accepting()
    job, origin = await _submit(services, caller, request, idempotency_key)
    job = await _until_terminal(services, caller, request, job, cancel=origin == "new")
    if job.status != "completed":
        raise _unfinished(job)
    answer = await file_answer(services, caller, request, job.id, "video", Conditions())
    answer.headers["X-Video-Id"] = job.id
    return answer


async def _submit(services: Services, caller: Caller, request: Request, key: str | None) -> tuple[Job, Origin]:
    try:
        return await submit(services, caller, _order(services, await read_video_order(request)), key)
    finally:
        await request.close()  # and with it the picture's temporary file


async def _until_terminal(services: Services, caller: Caller, request: Request, job: Job, *, cancel: bool) -> Job:
    """The job once it has ended.

    Args:
        cancel: cancel it if the caller goes away.

    Raises:
        ClientDisconnect: the caller went away.
    """
    with services.notifier.subscribe(job.id) as notified:
        while not job.is_terminal:
            if await request.is_disconnected():
                if cancel:
                    await cancel_job(job.id, services, caller)
                raise ClientDisconnect
            notified.clear()
            job = await run_in_thread(services.store.get, job.id, caller.owner)
            if not job.is_terminal:
                await wait_notified(notified, _LOOK_AGAIN_S)
    return job


def _unfinished(job: Job) -> Problem:
    """Why there is no file: the job's own error, or that it was cancelled or expired meanwhile."""
    headers = {"X-Video-Id": job.id}
    if job.error is not None:
        return Problem(500, job.error.code, job.error.message, headers=headers)
    return Problem(409, job.status, f"the job was {job.status} before it was done", headers=headers)


def _order(services: Services, order: VideoOrder) -> JobRequest:
    form = order.form
    task = "text-to-video" if order.picture is None else "image-to-video"
    if order.picture is None and not any(entry.task.name == task for entry in services.models):
        raise InvalidRequest(
            "no model served here makes a video of text alone; send a picture as input_reference",
            code="missing_field",
            param="input_reference",
        )
    return job_request(services.model(form.model, task), form, order.picture)


@router.get("/videos", responses=error_responses(404))
async def list_videos(
    request: Request, services: ServicesDep, caller: CallerDep, query: Annotated[VideoQuery, Query()]
) -> VideoList:
    """A page of videos."""
    page = await run_in_thread(services.store.page, None, query.after, query.limit, query.order, caller.owner)
    data = [video(job, request) for job in page.data]
    return VideoList(data=data, has_more=page.has_more, first_id=data[0].id if data else None, last_id=page.last_id)


@router.get("/videos/{video_id}", responses={200: {"model": Video}, **error_responses(404)}, response_model=Video)
async def get_video(request: Request, video_id: VideoId, services: ServicesDep, caller: CallerDep) -> JSONResponse:
    """A video as it is now."""
    job = await run_in_thread(services.store.get, video_id, caller.owner)
    return JSONResponse(video(job, request).model_dump(mode="json"), 200, _POLL)


@router.get("/videos/{video_id}/content", response_class=Response, responses=CONTENT_RESPONSES)
async def get_video_content(
    video_id: VideoId,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    query: Annotated[VideoContentQuery, Query()],
) -> Response:
    """A file of a completed video."""
    if query.video_id not in (None, video_id):
        raise InvalidRequest("video_id is another one than the path's; leave it out", param="video_id")
    variant = _VARIANTS[query.variant]
    return await file_answer(services, caller, request, video_id, variant, redirect=query.redirect)


@router.delete("/videos/{video_id}", responses=error_responses(404, 409))
async def delete_video(video_id: VideoId, services: ServicesDep, caller: CallerDep) -> VideoDeleted:
    """Remove a video and its files."""
    await run_in_thread(services.store.delete, video_id, caller.owner)
    await run_in_thread(services.artifacts.remove, video_id)
    services.notifier.notify(video_id)
    services.notifier.notify(QUEUE_TOPIC)
    return VideoDeleted(id=video_id)


@router.get("/models", responses=error_responses())
async def list_models(services: ServicesDep) -> Models:
    """Every checkpoint that may be named."""
    return Models(data=[Model(id=entry.name) for entry in services.models])


@router.get("/models/{model_id:path}", responses=error_responses(404))
async def get_model(model_id: str, services: ServicesDep) -> Model:
    """One checkpoint."""
    if all(entry.name != model_id for entry in services.models):
        raise Problem(404, "model_not_found", f"no model is called {model_id[:100]!r}; GET /v1/models lists them")
    return Model(id=model_id)

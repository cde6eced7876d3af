"""The routes that OpenAI's stock clients call, under /v1: the same jobs in their words (docs/openai.md).

POST /v1/videos is a multipart form, also where there is no file, as those clients send it; or the same as JSON.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from stillmotion.types import Variant

from model.errors import InvalidRequest, UnreadableImage
from serving.background import run_in_thread
from serving.gateway.auth import CallerDep, Submitter
from serving.gateway.errors import Problem, first_problem
from serving.gateway.images import PictureFile, room_for_uploads
from serving.gateway.openai_schema import (
    PROMPT_KEY,
    ImageReference,
    Model,
    Models,
    Video,
    VideoDeleted,
    VideoForm,
    VideoList,
    frames_for,
    size_for,
    video,
)
from serving.gateway.openapi import error_responses, video_body
from serving.gateway.requests import JSON, MULTIPART, uploaded
from serving.gateway.routes.content import CONTENT_RESPONSES, file_answer
from serving.gateway.services import Services, ServicesDep
from serving.gateway.submit import JobRequest, submit
from serving.jobs.dispatcher import QUEUE_TOPIC

_PICTURE: Final = "input_reference"
_URL: Final = "input_reference[image_url]"
_MAX_PROMPT: Final = 2000
"""Characters recorded of a prompt that the task does not use: it is written with every event of the job."""
_MAX_FIELD_BYTES: Final = 30_000_000
"""A picture may come as a data: URL in a field; the limit on the whole body holds besides."""


@dataclass(frozen=True, slots=True)
class VideoOrder:
    """What a caller sent; the picture is its file, its URL, or absent."""

    form: VideoForm
    picture: PictureFile | bytes | str | None


async def read_video_order(request: Request) -> VideoOrder:
    """Read the body: the form that OpenAI's clients send, or the same as JSON.

    Raises:
        Problem: 415 for another content type, 400 for a body that cannot be parsed.
        InvalidRequest: a field is unknown, missing or out of range; `param` names it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    picture: PictureFile | bytes | str | None = None
    if kind == MULTIPART:
        values, picture = await _read_form(request)
    elif kind == JSON:
        values = _json_object(await request.body())
    else:
        raise Problem(415, "unsupported_media_type", f"send {MULTIPART} or {JSON}, not {kind or 'an untyped body'!r}")
    reference = values.pop(_PICTURE, None)
    if picture is None and reference is not None:
        picture = _referenced(reference)
    try:
        return VideoOrder(VideoForm.model_validate(values), picture)
    except ValidationError as error:
        raise first_problem(error, "/v1/videos") from error


async def _read_form(request: Request) -> tuple[dict[str, Any], PictureFile | None]:
    values: dict[str, Any] = {}
    picture: PictureFile | None = None
    try:
        with room_for_uploads():
            form = await request.form(max_files=2, max_fields=32, max_part_size=_MAX_FIELD_BYTES)
    except HTTPException as error:
        raise Problem(400, "malformed_body", f"the multipart body cannot be read: {error.detail}") from error
    for name, value in form.multi_items():
        if name in values or (name == _PICTURE and picture is not None):
            raise InvalidRequest(f"{name} is given twice", code="duplicate_field", param=name)
        if name == _URL:
            values[_PICTURE] = {"image_url": value}
        elif not isinstance(value, UploadFile):
            values[name] = value
        elif name == _PICTURE:
            picture = uploaded(value)
        else:
            raise InvalidRequest(f"{name} is not a file", code="unknown_field", param=name)
    return values, picture


def _json_object(body: bytes) -> dict[str, Any]:
    from pydantic_core import from_json

    try:
        value = from_json(body)
    except ValueError as error:
        raise Problem(400, "malformed_body", f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise Problem(400, "malformed_body", "the body is no JSON object")
    return value


def _referenced(reference: Any) -> bytes | str:
    try:
        url = ImageReference.model_validate(reference).image_url
    except ValidationError as error:
        raise InvalidRequest(
            "input_reference must be a file, or an object with image_url", code="invalid_value", param=_PICTURE
        ) from error
    if url[:5].lower() != "data:":  # a scheme has no case (RFC 3986, section 3.1)
        return url
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise UnreadableImage("a data: URL must be base64: data:image/png;base64,...", param=_PICTURE)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableImage(f"the data: URL is not plain base64 ({error})", param=_PICTURE) from error


router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
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


@router.post(
    "/videos",
    responses={200: {"model": Video}, **error_responses(400, 409, 413, 415, 429, 503, 507)},
    response_model=Video,
    openapi_extra=video_body(),
)
async def create_video(
    request: Request,
    services: ServicesDep,
    caller: Submitter,
    idempotency_key: Annotated[
        str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255, description="as elsewhere")
    ] = None,
) -> JSONResponse:
    """Make a video: of `input_reference` where there is one, else of the prompt alone."""
    services.check_accepting()
    try:
        job_request = _order(services, await read_video_order(request))
        job, _ = await submit(services, caller, job_request, idempotency_key)
    finally:
        await request.close()
    return JSONResponse(video(job).model_dump(mode="json"), 200, _POLL)


def _order(services: Services, order: VideoOrder) -> JobRequest:
    form = order.form
    task = "text-to-video" if order.picture is None else "image-to-video"
    if order.picture is None and not any(entry.task.name == task for entry in services.models):
        raise InvalidRequest(
            "no model served here makes a video of text alone; send a picture as input_reference",
            code="missing_field",
            param="input_reference",
        )
    entry = services.model(form.model, task)
    settings: dict[str, Any] = {"num_frames": frames_for(entry, form.seconds)}
    size = size_for(entry, form.size)
    if size is not None:
        settings["width"], settings["height"] = size
    takes_prompt = "prompt" in entry.task.settings
    if takes_prompt:
        settings["prompt"] = form.prompt
    return JobRequest(
        task=task,
        model=entry.name,
        settings=settings,
        pictures=() if order.picture is None else (order.picture,),
        body=form.model_dump(mode="json"),
        metadata={} if takes_prompt else {PROMPT_KEY: form.prompt[:_MAX_PROMPT]},
    )


@router.get("/videos", responses=error_responses(404))
async def list_videos(services: ServicesDep, caller: CallerDep, query: Annotated[VideoQuery, Query()]) -> VideoList:
    """A page of videos."""
    page = await run_in_thread(services.store.page, None, query.after, query.limit, query.order, caller.owner)
    data = [video(job) for job in page.data]
    return VideoList(data=data, has_more=page.has_more, first_id=data[0].id if data else None, last_id=page.last_id)


@router.get("/videos/{video_id}", responses={200: {"model": Video}, **error_responses(404)}, response_model=Video)
async def get_video(video_id: VideoId, services: ServicesDep, caller: CallerDep) -> JSONResponse:
    """A video as it is now."""
    job = await run_in_thread(services.store.get, video_id, caller.owner)
    return JSONResponse(video(job).model_dump(mode="json"), 200, _POLL)


@router.get("/videos/{video_id}/content", response_class=Response, responses=CONTENT_RESPONSES)
async def get_video_content(
    video_id: VideoId,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    query: Annotated[VideoContentQuery, Query()],
) -> Response:
    """A file of a completed video."""
    return await file_answer(services, caller, request, video_id, _VARIANTS[query.variant])


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

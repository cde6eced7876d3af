"""Request bodies: a multipart form, JSON or JSON lines become validated fields and the pictures' bytes.

Nothing is stored here, and nothing is left behind if the caller goes away. The first line of a batch with a fault is
named in the error (`line 3: fps ...`), and nothing of the batch is accepted.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from stillmotion.types import (
    REQUESTS,
    BatchLine,
    ExtendRequest,
    GenerationRequest,
    ImageData,
    ImageToVideoRequest,
    InterpolateRequest,
    TextToVideoRequest,
    UpscaleRequest,
)

from model.errors import InvalidRequest, StillmotionError, UnreadableImage
from model.stages import NAMES
from model.tasks import TASKS, TaskSpec
from serving.gateway.errors import Problem, first_problem
from serving.gateway.images import UPLOAD_ID, PictureFile, PictureSource, UploadRef, room_for_uploads
from serving.gateway.submit import JobRequest
from serving.interpolation.plan import StageWishes
from serving.jobs.records import WebhookTarget

MULTIPART: Final = "multipart/form-data"
JSON: Final = "application/json"
_MAX_PARTS: Final = 64
_JSON_FIELDS: Final = frozenset({"metadata", "stages", "webhook"})
_MAX_FIELD_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller sent: checked one by one, not yet against a checkpoint.

    Args:
        images: the pictures, URLs or uploads of them, in the order of the task's spec. Files of a form are closed
            with the request (`Request.close`).
    """

    fields: GenerationRequest
    images: tuple[PictureSource, ...]


async def read_submission(request: Request, task: TaskSpec) -> Submission:
    """Read the request's body; who calls it closes the request, and with it a form's files.

    Raises:
        StorageFull: no room for a form's pictures on the disk.
        Problem: 415 for another content type, 400 for a body that cannot be parsed, 413 beyond the limit.
        InvalidRequest: a field is unknown, missing or out of range; `param` names it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == MULTIPART:
        return await _read_form(request, task)
    if kind == JSON:
        return read_json(await request.body(), task)
    raise Problem(415, "unsupported_media_type", f"send {MULTIPART} or {JSON}, not {kind or 'an untyped body'!r}")


async def _read_form(request: Request, task: TaskSpec) -> Submission:
    try:
        with room_for_uploads():
            form = await request.form(max_files=4, max_fields=_MAX_PARTS, max_part_size=_MAX_FIELD_BYTES)
        values, files = _split_form(form, task)
        images = tuple([_form_picture(files[name]) for name in task.pictures])
    except HTTPException as error:
        raise Problem(400, "malformed_body", f"the multipart body cannot be read: {error.detail}") from error
    settings, _ = REQUESTS[task.name]
    try:
        return Submission(settings.model_validate(values), images)
    except ValidationError as error:
        raise first_problem(error, task.name, settings.model_fields) from error


def uploaded(part: UploadFile) -> PictureFile:
    """A form's picture, where Starlette keeps it: in memory up to 1 MB, else in a temporary file."""
    return PictureFile(part.file, part.size or 0)


def _form_picture(part: UploadFile | str) -> PictureSource:
    return UploadRef(part) if isinstance(part, str) else uploaded(part)


def _split_form(form: FormData, task: TaskSpec) -> tuple[dict[str, Any], dict[str, UploadFile | str]]:
    """The plain fields and the pictures' parts: files, or ids of uploads."""
    values: dict[str, Any] = {}
    files: dict[str, UploadFile | str] = {}
    for name, value in form.multi_items():
        if name in values or name in files:
            raise InvalidRequest(f"{name} is given twice", code="duplicate_field", param=name)
        if name in task.pictures:
            if isinstance(value, str) and not UPLOAD_ID.fullmatch(value):
                raise InvalidRequest(f"{name} must be a file part, with a filename, or an upload's id", param=name)
            files[name] = value
        elif isinstance(value, UploadFile):
            takes = f"its file parts are: {', '.join(task.pictures)}" if task.pictures else "it takes no files"
            raise InvalidRequest(f"{task.name} has no file {name!r}; {takes}", code="unknown_field", param=name)
        else:
            values[name] = _parse_json(name, value) if name in _JSON_FIELDS else value
    for name in task.pictures:
        if name not in files:
            raise InvalidRequest(f"{name} is required: a file part with the picture", code="missing_field", param=name)
    return values, files


def _parse_json(name: str, text: str) -> Any:
    try:
        return from_json(text)  # bounded in depth, unlike json.loads
    except ValueError as error:
        raise InvalidRequest(f"{name} must be a JSON object: {error}", param=name) from error


def read_json(body: bytes, task: TaskSpec) -> Submission:
    """Read a JSON body. Raises as `read_submission`."""
    settings, with_pictures = REQUESTS[task.name]
    try:
        fields = with_pictures.model_validate_json(body, strict=True)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            message = f"the body is not valid JSON: {error.errors()[0]['msg']}"
            raise Problem(400, "malformed_body", message) from error
        raise first_problem(error, task.name, with_pictures.model_fields) from error
    images = tuple(_picture(name, getattr(fields, name)) for name in task.pictures)
    return Submission(settings(**fields.model_dump(exclude=set(task.pictures))), images)


def _picture(name: str, image: ImageData) -> PictureSource:
    if sum(value is not None for value in (image.data, image.url, image.upload)) > 1:
        raise InvalidRequest(f"send one of {name}.data, {name}.upload and {name}.url", param=name)
    if image.upload is not None:
        return UploadRef(image.upload)
    if image.url is not None:
        return str(image.url)
    if image.data is None:
        raise InvalidRequest(
            f"{name}.data is required: the picture, base64; or {name}.upload",
            code="missing_field",
            param=f"{name}.data",
        )
    try:
        return base64.b64decode(image.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableImage(f"{name}.data is not plain base64 ({error})", param=f"{name}.data") from error


_NOT_IN_BATCHES: Final = {
    "priority": "a batch's rows are offline work",
    "reuse": "each row of a batch is a job of its own",
}
JSON_LINES: Final = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")


async def read_batch(request: Request, most_rows: int) -> list[tuple[BatchLine, JobRequest]]:
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
    line_of_id: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        row = _read_line(number, line)
        if row[0].custom_id in line_of_id:
            first = line_of_id[row[0].custom_id]
            message = f"line {number}: custom_id {row[0].custom_id!r} was used in line {first} already"
            raise InvalidRequest(message, code="duplicate_field", param=f"line {number}: custom_id")
        line_of_id[row[0].custom_id] = number
        rows.append(row)
    return rows


def _read_line(number: int, line: bytes) -> tuple[BatchLine, JobRequest]:
    try:
        parsed = BatchLine.model_validate_json(line)
    except ValidationError as error:
        at_fault(number, first_problem(error, "a batch's line"))
    for name, reason in _NOT_IN_BATCHES.items():
        if name in parsed.body:
            at_fault(number, InvalidRequest(f"{reason}; leave {name} out", param=name))
    task = TASKS[parsed.url.rpartition("/")[2]]
    try:
        request = to_job_request(read_json(json.dumps(parsed.body).encode(), task), task.name)
    except InvalidRequest as error:
        at_fault(number, error)
    return parsed, replace(request, priority="offline")


def at_fault(number: int, error: StillmotionError) -> NoReturn:
    """Raise the error again, naming the line (from 1) that caused it."""
    param = f"line {number}" if error.param is None else f"line {number}: {error.param}"
    raise InvalidRequest(f"line {number}: {error.message}", code=error.code, param=param) from error


def to_job_request(submission: Submission, task: str) -> JobRequest:
    """The job that a submission requests."""
    fields = submission.fields
    body, has = fields.model_dump(mode="json"), TASKS[task].settings
    webhook = None if fields.webhook is None else WebhookTarget(fields.webhook.url, fields.webhook.secret)
    return JobRequest(
        task=task,
        model=fields.model,
        settings={name: value for name, value in body.items() if name in has},
        pictures=submission.images,
        body=body,
        output_format=fields.output_format,
        priority=fields.priority,
        deadline_s=fields.deadline_s,
        metadata=fields.metadata,
        webhook=webhook,
        previews=fields.previews,
        stages=_stages(fields),
        reuse=fields.reuse,
    )


def _stages(fields: GenerationRequest) -> StageWishes:
    """The stages that a submission wants, in the short form or as a list."""
    if not isinstance(fields, (ImageToVideoRequest, TextToVideoRequest)):
        return StageWishes()
    short = {"interpolate": fields.interpolate is not False, "upscale": fields.upscale is not None}
    wishes: dict[str, Any] = {"interpolate": fields.interpolate, "upscale": fields.upscale}
    if fields.upscaler is not None:
        if fields.upscale is None:
            raise InvalidRequest("upscaler goes with upscale, which is missing", param="upscaler")
        wishes["upscaler"] = fields.upscaler
    before = -1
    for index, stage in enumerate(fields.stages):
        place = NAMES.index(stage.kind)
        if place <= before:
            order = ", ".join(NAMES)
            raise InvalidRequest(f"stages come in the order {order}, each at most once", param=f"stages.{index}")
        before = place
        if short.get(stage.kind):
            raise InvalidRequest(f"{stage.kind} is given twice", code="duplicate_field", param=f"stages.{index}")
        match stage:
            case ExtendRequest(num_frames=frames, model=model):
                wishes |= {"frames": frames, "extender": model}
            case InterpolateRequest(model=model):
                wishes["interpolate"] = True if model is None else model
            case UpscaleRequest(factor=factor, network=network):
                wishes |= {"upscale": factor, "upscaler": network}
    return StageWishes(**wishes)

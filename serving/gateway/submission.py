"""Reading a submission: a multipart form or a JSON body becomes checked fields and the picture's bytes.

Nothing is stored here, and nothing is left behind if the caller goes away.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from stillmotion.types import ImageToVideoBody, ImageToVideoRequest

from model.errors import InvalidRequest, UnreadableImage
from serving.gateway.errors import Problem, first_problem

MULTIPART: Final = "multipart/form-data"
JSON: Final = "application/json"
_MAX_PARTS: Final = 64
_MAX_FIELD_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller sent: checked one by one, not yet against a checkpoint."""

    fields: ImageToVideoRequest
    image: bytes


async def read_submission(request: Request, task: str) -> Submission:
    """Read the request's body.

    Raises:
        Problem: 415 for another content type, 400 for a body that cannot be parsed, 413 beyond the limit.
        InvalidRequest: a field is unknown, missing or out of range; `param` names it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == MULTIPART:
        return await _read_form(request, task)
    if kind == JSON:
        return _read_json(await request.body(), task)
    raise Problem(415, "unsupported_media_type", f"send {MULTIPART} or {JSON}, not {kind or 'an untyped body'!r}")


async def _read_form(request: Request, task: str) -> Submission:
    try:
        async with request.form(max_files=4, max_fields=_MAX_PARTS, max_part_size=_MAX_FIELD_BYTES) as form:
            values, image = _split_form(form)
            data = await image.read()
    except HTTPException as error:
        raise Problem(400, "malformed_body", f"the multipart body cannot be read: {error.detail}") from error
    try:
        return Submission(ImageToVideoRequest.model_validate(values), data)
    except ValidationError as error:
        raise first_problem(error, task) from error


def _split_form(form: FormData) -> tuple[dict[str, Any], UploadFile]:
    """The plain fields and the picture's part."""
    values: dict[str, Any] = {}
    image: UploadFile | None = None
    for name, value in form.multi_items():
        if name in values or (name == "image" and image is not None):
            raise InvalidRequest(f"{name} is given twice", code="duplicate_field", param=name)
        if name == "image":
            if not isinstance(value, UploadFile):
                raise InvalidRequest("image must be a file part, with a filename", param="image")
            image = value
        elif isinstance(value, UploadFile):
            raise InvalidRequest(f"{name} is not a file; the picture's part is image", code="unknown_field", param=name)
        else:
            values[name] = _parse_metadata(value) if name == "metadata" else value
    if image is None:
        raise InvalidRequest("image is required: a file part with the picture", code="missing_field", param="image")
    return values, image


def _parse_metadata(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"metadata must be a JSON object: {error}", param="metadata") from error


def _read_json(body: bytes, task: str) -> Submission:
    try:
        fields = ImageToVideoBody.model_validate_json(body, strict=True)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            message = f"the body is not valid JSON: {error.errors()[0]['msg']}"
            raise Problem(400, "malformed_body", message) from error
        raise first_problem(error, task) from error
    if fields.image.url is not None:
        raise InvalidRequest(
            "this server fetches no URLs; send the picture itself in image.data",
            code="url_not_allowed",
            param="image.url",
        )
    if fields.image.data is None:
        raise InvalidRequest("image.data is required: the picture, base64", code="missing_field", param="image.data")
    try:
        data = base64.b64decode(fields.image.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableImage(f"image.data is not plain base64 ({error})", param="image.data") from error
    return Submission(ImageToVideoRequest(**fields.model_dump(exclude={"image"})), data)

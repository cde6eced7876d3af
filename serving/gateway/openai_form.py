"""Reading POST /v1/videos as OpenAI's clients send it: always a multipart form, also where there is no file."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from model.errors import InvalidRequest, UnreadableImage
from serving.gateway.errors import Problem, first_problem
from serving.gateway.openai_types import ImageReference, VideoForm
from serving.gateway.submission import JSON, MULTIPART

_PICTURE: Final = "input_reference"
_URL: Final = "input_reference[image_url]"
_MAX_FIELD_BYTES: Final = 30_000_000
"""A picture may come as a data: URL in a field; the limit on the whole body holds besides."""


@dataclass(frozen=True, slots=True)
class VideoOrder:
    """What a caller sent; the picture is its file, its URL, or absent."""

    form: VideoForm
    picture: bytes | str | None


async def read_video_order(request: Request) -> VideoOrder:
    """Read the body: the form that OpenAI's clients send, or the same as JSON.

    Raises:
        Problem: 415 for another content type, 400 for a body that cannot be parsed.
        InvalidRequest: a field is unknown, missing or out of range; `param` names it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    picture: bytes | str | None = None
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


async def _read_form(request: Request) -> tuple[dict[str, Any], bytes | None]:
    values: dict[str, Any] = {}
    picture: bytes | None = None
    try:
        async with request.form(max_files=2, max_fields=32, max_part_size=_MAX_FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if name in values or (name == _PICTURE and picture is not None):
                    raise InvalidRequest(f"{name} is given twice", code="duplicate_field", param=name)
                if name == _URL:
                    values[_PICTURE] = {"image_url": value}
                elif not isinstance(value, UploadFile):
                    values[name] = value
                elif name == _PICTURE:
                    picture = await value.read()
                else:
                    raise InvalidRequest(f"{name} is not a file", code="unknown_field", param=name)
    except HTTPException as error:
        raise Problem(400, "malformed_body", f"the multipart body cannot be read: {error.detail}") from error
    return values, picture


def _json_object(body: bytes) -> dict[str, Any]:
    from pydantic_core import from_json

    try:
        found = from_json(body)
    except ValueError as error:
        raise Problem(400, "malformed_body", f"the body is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise Problem(400, "malformed_body", "the body is no JSON object")
    return found


def _referenced(reference: Any) -> bytes | str:
    try:
        url = ImageReference.model_validate(reference).image_url
    except ValidationError as error:
        raise InvalidRequest(
            "input_reference must be a file, or an object with image_url", code="invalid_value", param=_PICTURE
        ) from error
    if not url.startswith("data:"):
        return url
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise UnreadableImage("a data: URL must be base64: data:image/png;base64,...", param=_PICTURE)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableImage(f"the data: URL is not plain base64 ({error})", param=_PICTURE) from error

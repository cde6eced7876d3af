"""The body of POST /v1/videos: what OpenAI's clients send, and what other video servers' clients do.

vLLM-Omni, SGLang and FastVideo serve the same route with fields of their own, as a form or as JSON; LiteLLM sends a
form without parts where there is no file. Each of their fields is read here, or refused by its name with the reason
(docs/openai.md has the table). A field whose value asks for nothing (null, an empty text, `n: 1`) is as good as absent.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

from fastapi import Request
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from model.errors import InvalidRequest, UnreadableImage
from serving.gateway.errors import Problem, first_problem
from serving.gateway.images import UPLOAD_ID, PictureFile, PictureSource, UploadRef, room_for_uploads
from serving.gateway.requests import JSON, MULTIPART, uploaded

URLENCODED: Final = "application/x-www-form-urlencoded"
_SECONDS: Final = re.compile(r"\d{1,3}(\.\d{1,3})?\Z")
_PICTURE: Final = "input_reference"
_PICTURES: Final = (_PICTURE, "image_reference", "reference_url")
"""Where a picture may lie: OpenAI's field, vLLM-Omni's and SGLang's."""
_MAX_FIELD_BYTES: Final = 30_000_000
"""A picture may come as a data: URL in a field; the limit on the whole body holds besides."""
_OBJECTS: Final = frozenset({"image_reference", "video_params", "lora", "extra_params", "extra_body", "extra_json"})
"""Fields that a form carries as JSON text, or one by one: `extra_params[motion_bucket_id]`."""
_NESTED: Final = re.compile(rf"({'|'.join(sorted(_OBJECTS | {_PICTURE}))})\[(\w{{1,100}})\]")
_MERGED: Final = ("extra_body", "extra_json")
"""Objects whose fields stand for fields of the body itself (SGLang, FastVideo)."""

_OF_OTHER_MODELS: Final = "no model of this service has such a setting; leave it out"
_NO_SOUND: Final = "videos of this service have no sound; leave it out"
_UNSUPPORTED: Final[dict[str, str]] = {
    "negative_prompt": "these models are guided away from no condition at all, and read no second text; leave it out",
    "guidance_scale_2": _OF_OTHER_MODELS,
    "boundary_ratio": _OF_OTHER_MODELS,
    "flow_shift": _OF_OTHER_MODELS,
    "true_cfg_scale": "guidance_scale is the scale of classifier-free guidance here; send that",
    "max_sequence_length": _OF_OTHER_MODELS,
    "enable_teacache": "no steps are skipped by a cache; send fewer num_inference_steps",
    "generate_sound": _NO_SOUND,
    "sound_duration": _NO_SOUND,
    "audio_reference": _NO_SOUND,
    "video_reference": "a video is made of a still or of a text, not of a video; send a still as input_reference",
    "video_path": "no path of the server is read; send a still as input_reference",
    "video_url": "a video is made of a still or of a text, not of a video; send a still as input_reference",
    "control_reference": _OF_OTHER_MODELS,
    "control_type": _OF_OTHER_MODELS,
    "frame_interpolation_scale": "frames are interpolated at their own size; leave it out",
    "frame_interpolation_model_path": "the operator says which model interpolates (GET /models); leave it out",
    "output_path": "files are fetched from /v1/videos/{id}/content; no path on the server is written",
    "output_quality": "videos are encoded in one quality; leave it out",
    "output_compression": "videos are encoded in one quality; leave it out",
    "generator_device": "noise is drawn on the CPU, so that a seed gives the same video everywhere; leave it out",
    "diffusers_kwargs": "settings of this service go into extra_params",
    "rollout": _OF_OTHER_MODELS,
    "rollout_sde_type": _OF_OTHER_MODELS,
    "aspect_ratio": "send size, or width and height",
    "short_edge": "send size, or width and height",
    "start_time_seconds": "a video begins with its still; leave it out",
    "n": "a request makes one video; send n requests, or a batch",
    "num_outputs_per_prompt": "a request makes one video; send several requests, or a batch",
    "quality": "videos are encoded in one quality; leave it out",
    "task": "the task follows from whether there is a picture; leave it out",
    "stream": "progress comes from GET /jobs/{id}/events; leave it out",
    "response_format": "the file is at /v1/videos/{id}/content, or the answer of /v1/videos/sync; leave it out",
}
"""Fields of other servers that cannot be heeded, and why."""
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "enable_teacache": (False, "false", "False"),
    "generate_sound": (False, "false", "False"),
    "rollout": (False, "false", "False"),
    "stream": (False, "false", "False"),
    "frame_interpolation_scale": (1, "1", "1.0"),
    "n": (1, "1"),
    "num_outputs_per_prompt": (1, "1"),
    "quality": ("auto", "default", "standard"),
    "output_quality": ("auto", "default", "standard"),
    "generator_device": ("cpu",),
}
"""Values that ask for what is done anyway."""


class ImageReference(BaseModel):
    """A picture by URL: `data:` always, others where the operator allows URLs."""

    model_config = ConfigDict(extra="forbid")

    image_url: str = Field(max_length=40_000_000)


class VideoParams(BaseModel):
    """Sizes and rates in an object of their own (vLLM-Omni, FastVideo)."""

    model_config = ConfigDict(extra="forbid")

    width: int | None = Field(None, ge=1, le=99_999)
    height: int | None = Field(None, ge=1, le=99_999)
    num_frames: int | None = Field(None, ge=1, le=100_000)
    fps: int | None = Field(None, ge=1, le=60)


class VideoLora(BaseModel):
    """An adapter by name (vLLM-Omni's object); a path on the server is not read."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=80)
    scale: float | None = Field(None, ge=-2, le=2)


def _as_text(value: object) -> object:
    """Some clients send a number, OpenAI's a text."""
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Seconds = Annotated[
    str,
    BeforeValidator(_as_text),
    Field(max_length=20),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 20}, {"type": "number"}]}),
]


class VideoForm(BaseModel):
    """The fields of POST /v1/videos besides a picture."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=32_000, description="what is to be seen; recorded where unused")
    model: str | None = Field(None, description="which checkpoint; GET /v1/models lists them")
    seconds: Seconds | None = Field(None, description="text or number; the nearest length the checkpoint makes is made")
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT: the nearest the checkpoint makes is made")
    width: int | None = Field(None, ge=1, le=99_999, description="with height: as `size`")
    height: int | None = Field(None, ge=1, le=99_999, description="with width: as `size`")
    num_frames: int | None = Field(
        None, ge=1, le=100_000, description="the nearest count the checkpoint makes is made; goes before `seconds`"
    )
    fps: int | None = Field(None, ge=1, le=60, description="conditioned on, and played at")
    num_inference_steps: int | None = Field(None, ge=1, le=200)
    guidance_scale: float | None = Field(None, ge=0, le=30, allow_inf_nan=False, description="max_guidance_scale")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="the same seed and settings: the same video")
    user: str | None = Field(None, max_length=512, description="recorded with the job")
    video_params: VideoParams | None = Field(None, description="width, height, num_frames and fps, in an object")
    lora: VideoLora | None = Field(None, description="an adapter that GET /models lists")
    enable_frame_interpolation: bool = Field(False, description="three frames between each two, at four times the fps")
    frame_interpolation_exp: int | None = Field(None, description="2, which means four times: other rates are not made")
    extra_params: dict[str, Any] | None = Field(
        None, description="settings of POST /generate/... that have no field here, such as motion_bucket_id"
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.size is None and (self.wished("width") is None) != (self.wished("height") is None):
            raise ValueError("width and height go together")
        return self

    def wished(self, name: str) -> int | None:
        """A size or rate, from the body or from `video_params`; the body's goes first."""
        value: int | None = getattr(self, name)
        return value if value is not None or self.video_params is None else getattr(self.video_params, name)

    @property
    def wished_size(self) -> str | None:
        """WIDTHxHEIGHT, however it was given; `size` goes first."""
        if self.size is not None or self.wished("width") is None:
            return self.size
        return f"{self.wished('width')}x{self.wished('height')}"


@dataclass(frozen=True, slots=True)
class VideoOrder:
    """What a caller sent; the picture is its file, its URL, an upload, or absent."""

    form: VideoForm
    picture: PictureSource | None


async def read_video_order(request: Request) -> VideoOrder:
    """Read the body: a form, with parts or without, or JSON.

    Raises:
        Problem: 415 for another content type, 400 for a body that cannot be parsed.
        InvalidRequest: a field is unknown, unsupported, missing or out of range; `param` names it.
    """
    return order(*await _read_body(request))


async def read_fields(request: Request) -> dict[str, Any]:
    """The fields of a body that has no file. Raises as `read_video_order`."""
    values, picture = await _read_body(request)
    if picture is not None:
        raise InvalidRequest(f"{_PICTURE} is no field of this request", code="unknown_field", param=_PICTURE)
    return values


async def _read_body(request: Request) -> tuple[dict[str, Any], PictureFile | None]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in (MULTIPART, URLENCODED):
        return await _read_form(request)
    if kind == JSON:
        return _json_object(await request.body()), None
    raise Problem(415, "unsupported_media_type", f"send {MULTIPART} or {JSON}, not {kind or 'an untyped body'!r}")


def positive_seconds(seconds: str) -> float:
    """A length that was sent as text. Raises InvalidRequest: it is no positive number."""
    if not _SECONDS.match(seconds) or float(seconds) <= 0:
        raise InvalidRequest(f"seconds must be a positive number such as 4, not {seconds[:20]!r}", param="seconds")
    return float(seconds)


def order(values: Mapping[str, Any], picture: PictureFile | bytes | None = None) -> VideoOrder:
    """The checked order of a body's fields.

    Args:
        values: by name; text where they came in a form.
        picture: the file, where the body had one.

    Raises:
        InvalidRequest: as `read_video_order`.
    """
    fields = dict(_supported(_merged(values)))
    sources: list[PictureSource] = [] if picture is None else [picture]
    for name in _PICTURES:
        if name in fields:
            sources.append(_referenced(name, fields.pop(name)))
            if len(sources) > 1:
                raise InvalidRequest("more than one picture is given; send one", code="duplicate_field", param=name)
    try:
        return VideoOrder(VideoForm.model_validate(fields), sources[0] if sources else None)
    except ValidationError as error:
        raise first_problem(error, "/v1/videos", VideoForm.model_fields) from error


def _merged(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, those in `extra_body` among them."""
    fields = dict(values)
    for outer in _MERGED:
        extra = fields.pop(outer, None)
        if extra in (None, ""):
            continue
        if not isinstance(extra, dict):
            raise InvalidRequest(f"{outer} must be a JSON object", param=outer)
        for name, value in extra.items():
            if name in fields:
                raise InvalidRequest(f"{name} is given twice", code="duplicate_field", param=f"{outer}.{name}")
            fields[name] = value
    return fields


def _supported(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields that ask for something this service does. Raises InvalidRequest for one that it does not."""
    for name, value in fields.items():
        if value is None or (value == "" and name != "prompt"):
            continue
        reason = _UNSUPPORTED.get(name)
        if reason is None:
            yield name, value
        elif value not in _NEUTRAL.get(name, ()):
            raise InvalidRequest(f"{name} is not supported: {reason}", code="unsupported_field", param=name)


async def _read_form(request: Request) -> tuple[dict[str, Any], PictureFile | None]:
    """The fields, and the picture's file, which is open until the request is closed."""
    values: dict[str, Any] = {}
    picture: PictureFile | None = None
    try:
        with room_for_uploads():
            form = await request.form(max_files=2, max_fields=64, max_part_size=_MAX_FIELD_BYTES)
    except HTTPException as error:
        raise Problem(400, "malformed_body", f"the form cannot be read: {error.detail}") from error
    for name, value in form.multi_items():
        if name in values or (name == _PICTURE and picture is not None):
            raise InvalidRequest(f"{name} is given twice", code="duplicate_field", param=name)
        nested = _NESTED.fullmatch(name)
        if nested is not None and isinstance(value, str):
            _put_nested(values, nested[1], nested[2], value)
        elif not isinstance(value, UploadFile):
            values[name] = _parse_object(name, value) if name in _OBJECTS and value else value
        elif name == _PICTURE:
            picture = uploaded(value)
        else:
            _refuse_file(name)
    return values, picture


def _put_nested(values: dict[str, Any], outer: str, inner: str, value: str) -> None:
    """A field of an object, as OpenAI's client writes it in a form: `extra_params[motion_bucket_id]`."""
    fields = values.setdefault(outer, {})
    if not isinstance(fields, dict) or inner in fields:
        raise InvalidRequest(f"{outer}[{inner}] is given twice", code="duplicate_field", param=outer)
    fields[inner] = value


def _refuse_file(name: str) -> None:
    reason = _UNSUPPORTED.get(name)
    if reason is not None:
        raise InvalidRequest(f"{name} is not supported: {reason}", code="unsupported_field", param=name)
    raise InvalidRequest(f"{name} is not a file", code="unknown_field", param=name)


def _parse_object(name: str, text: str) -> Any:
    try:
        return from_json(text)  # bounded in depth, unlike json.loads
    except ValueError as error:
        raise InvalidRequest(f"{name} must be a JSON object: {error}", param=name) from error


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = from_json(body)
    except ValueError as error:
        raise Problem(400, "malformed_body", f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise Problem(400, "malformed_body", "the body is no JSON object")
    return value


def _referenced(name: str, reference: Any) -> PictureSource:
    """The picture that a field names: a URL as text or in an object, or an upload's id as either."""
    if isinstance(reference, str) and reference.lstrip().startswith("{"):
        reference = _parse_object(name, reference)
    upload = reference.get("file_id") if isinstance(reference, dict) and len(reference) == 1 else reference
    if isinstance(upload, str) and UPLOAD_ID.fullmatch(upload):
        return UploadRef(upload)
    if isinstance(reference, dict) and "file_id" in reference:
        raise InvalidRequest(
            f"{name}.file_id must be the id of an upload (POST /uploads), and nothing beside it; or send image_url",
            code="invalid_value",
            param=f"{name}.file_id",
        )
    try:
        url = reference if isinstance(reference, str) else ImageReference.model_validate(reference).image_url
    except ValidationError as error:
        raise InvalidRequest(
            f"{name} must be a file, a URL, or an object with image_url", code="invalid_value", param=name
        ) from error
    if url[:5].lower() != "data:":  # a scheme has no case (RFC 3986, section 3.1)
        return url
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise UnreadableImage("a data: URL must be base64: data:image/png;base64,...", param=name)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableImage(f"the data: URL is not plain base64 ({error})", param=name) from error

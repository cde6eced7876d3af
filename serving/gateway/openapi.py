"""The OpenAPI document: error answers of each route, and bodies that FastAPI cannot know since our code reads them."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from stillmotion.types import REQUESTS, BatchLine, BatchResult, ErrorResponse, JobEvent

from model.tasks import TaskSpec, task
from serving.gateway.openai_request import URLENCODED, ImageReference, VideoForm

_MEANINGS: Final[dict[int, str]] = {
    400: "The body cannot be parsed",
    401: "No API key, or one that is not valid (any more)",
    403: "The key may not do this",
    404: "No such job, batch or upload, or another key's",
    409: "The job's present state, an Idempotency-Key used before, or an infeasible deadline does not allow it",
    413: "The body or the picture is too large",
    415: "Another content type than multipart/form-data or application/json",
    416: "The range lies outside of the file",
    422: "A field is unknown, missing or out of range; `param` names it",
    429: "The queue is full, or the key's rate, quota or room for uploads is used up; see Retry-After",
    500: "An unexpected error",
    503: "Not ready; see Retry-After",
    507: "The server's disk is full",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these error statuses, 422 and 500 always among them."""
    return {
        status: {"model": ErrorResponse, "description": _MEANINGS[status]} for status in sorted({422, 500, *statuses})
    }


_REF: Final = "#/components/schemas/{model}"
_LINES: Final = ((BatchLine, "validation"), (BatchResult, "serialization"), (JobEvent, "serialization"))
"""What travels a line or an event at a time, which no schema of a whole body can say."""


def submission_body(spec: TaskSpec) -> dict[str, Any]:
    """The request body of a task's submission: as a form, or as JSON."""
    _, body = REQUESTS[spec.name]
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"$ref": _REF.format(model=_form_name(spec))}},
                "application/json": {"schema": {"$ref": _REF.format(model=body.__name__)}},
            },
        }
    }


def upload_body(field: str) -> dict[str, Any]:
    """The request body of POST /uploads: the picture's file, or a form with it."""
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {field: file}, "required": [field], "additionalProperties": False}
    content = {"application/octet-stream": {"schema": file}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "description": "The picture's file.", "content": content}}


def _form_name(spec: TaskSpec) -> str:
    return REQUESTS[spec.name][0].__name__.removesuffix("Request") + "Form"


_VIDEO_KINDS: Final = {
    "multipart/form-data": "VideoRequestForm",
    "application/json": "VideoRequestBody",
    URLENCODED: "VideoRequestFields",
}
"""Content type of POST /v1/videos -> the name of its schema, which /v1/videos/sync has too."""


def video_body() -> dict[str, Any]:
    """The request body of POST /v1/videos: as a form, with parts or without, or as JSON."""
    content = {kind: {"schema": {"$ref": _REF.format(model=name)}} for kind, name in _VIDEO_KINDS.items()}
    return {"requestBody": {"required": True, "content": content}}


def _video_schemas() -> dict[str, Any]:
    both = _inlined(VideoForm.model_json_schema())
    url = {"type": "string", "description": "the picture's URL: data: always, others where the operator allows URLs"}
    picture = {"type": "string", "format": "binary", "description": "the picture; or input_reference[image_url]"}
    reference = ImageReference.model_json_schema()
    elsewhere = {"image_reference": reference, "reference_url": url}
    form = {"input_reference": picture, **elsewhere, **both["properties"]}
    body = {"input_reference": {"anyOf": [reference, url]}, **elsewhere, **both["properties"]}
    plain = {"input_reference": url, **elsewhere, **both["properties"]}
    fields = zip(_VIDEO_KINDS.values(), (form, body, plain), strict=True)
    return {name: {**both, "title": name, "properties": properties} for name, properties in fields}


def extension_body(*, named: bool) -> dict[str, Any]:
    """The request body of a route that makes a clip longer; `named`: with the video that it is about."""
    properties = {
        "seconds": {
            "anyOf": [{"type": "string", "maxLength": 20}, {"type": "number"}],
            "description": "how much longer the clip shall be",
        },
        "num_frames": {"type": "integer", "minimum": 2, "maximum": 1000, "description": "of the whole clip"},
        "prompt": {"type": "string", "maxLength": 32_000, "description": "recorded"},
    }
    video = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
    schema = {
        "type": "object",
        "properties": properties | ({"video": video} if named else {}),
        "additionalProperties": False,
        **({"required": ["video"]} if named else {}),
    }
    form_fields = properties | ({"video[id]": {"type": "string"}} if named else {})
    form = {**schema, "properties": form_fields, **({"required": ["video[id]"]} if named else {})}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with the models that it refers to in their places."""
    models = schema.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(item) for item in value]
        if not isinstance(value, dict):
            return value
        name = str(value.get("$ref", "")).rpartition("/")[2]
        return put(models[name]) if name in models else {key: put(item) for key, item in value.items()}

    inlined: dict[str, Any] = put(schema)
    return inlined


def _schemas() -> dict[str, Any]:
    kinds = [(kind, "validation") for pair in REQUESTS.values() for kind in pair]
    _, all_of_them = models_json_schema([*kinds, *_LINES], ref_template=_REF)  # type: ignore[list-item]
    schemas: dict[str, Any] = dict(all_of_them["$defs"])
    for name, (settings, _) in REQUESTS.items():
        spec = task(name)
        schemas[_form_name(spec)] = _form(spec, schemas.pop(settings.__name__))
    return schemas | _video_schemas()


def _form(spec: TaskSpec, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as form fields, with a file part for each picture."""
    described = "the picture: JPEG, PNG, WebP, GIF, TIFF or BMP; or the id of an upload, as text"
    pictures = {name: {"type": "string", "format": "binary", "description": described} for name in spec.pictures}
    written = {"type": "string", "contentMediaType": "application/json", "description": "a JSON object"}
    stages = {"stages": {**written, "description": "a JSON list"}} if "stages" in settings["properties"] else {}
    return {
        **settings,
        "title": _form_name(spec),
        "description": "The settings as form fields, and each picture as a file part.",
        "properties": {**pictures, **settings["properties"], "metadata": written, "webhook": written, **stages},
        "required": [*spec.pictures, *settings.get("required", [])],
    }


def install(app: FastAPI) -> None:
    """Give the app an OpenAPI document with those parts in it."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            openapi_schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            schemas = openapi_schema.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in _schemas().items():
                schemas.setdefault(name, schema)
            app.openapi_schema = openapi_schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]

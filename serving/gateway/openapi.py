"""The parts of the OpenAPI document that FastAPI cannot know, since the submission's body is read by our own code."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from stillmotion.types import ImageToVideoBody, ImageToVideoRequest, JobEvent

_REF: Final = "#/components/schemas/{model}"
_FORM: Final = "ImageToVideoForm"


def submission_body() -> dict[str, Any]:
    """The request body of an image-to-video submission: as a form, or as JSON."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"$ref": _REF.format(model=_FORM)}},
                "application/json": {"schema": {"$ref": _REF.format(model=ImageToVideoBody.__name__)}},
            },
        }
    }


def _schemas() -> dict[str, Any]:
    _, both = models_json_schema(
        [(ImageToVideoBody, "validation"), (ImageToVideoRequest, "validation"), (JobEvent, "serialization")],
        ref_template=_REF,
    )
    schemas: dict[str, Any] = dict(both["$defs"])
    form = dict(schemas.pop(ImageToVideoRequest.__name__))
    form["title"] = _FORM
    form["description"] = "The settings as form fields, and the picture as a file part."
    form["properties"] = {
        "image": {
            "type": "string",
            "format": "binary",
            "description": "the picture: JPEG, PNG, WebP, GIF, TIFF or BMP",
        },
        **form["properties"],
        "metadata": {"type": "string", "contentMediaType": "application/json", "description": "a JSON object"},
    }
    form["required"] = ["image"]
    return {**schemas, _FORM: form}


def install(app: FastAPI) -> None:
    """Give the app an OpenAPI document with those parts in it."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = made.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in _schemas().items():
                schemas.setdefault(name, schema)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]

"""The SDK's request types against the task table: tasks, settings, pictures, ranges and choices."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from stillmotion.types import REQUESTS

from model import params
from model.tasks import TASKS

ENVELOPE = {"model", "output_format", "priority", "deadline_s", "metadata", "webhook", "previews"}
ENVELOPE |= {"interpolate", "upscale", "upscaler", "stages", "reuse"}
"""Request fields that are no settings of a generation: who makes it, when, and what becomes of it."""
CHOICES = {"solver": params.SolverName, "schedule": params.ScheduleName, "resize_mode": params.ResizeMode}


def test_the_sdk_has_every_task_and_no_other() -> None:
    assert list(REQUESTS) == list(TASKS)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_request_has_the_task_s_settings(task: str) -> None:
    settings, _ = REQUESTS[task]
    assert settings.model_fields.keys() - ENVELOPE == TASKS[task].settings


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_body_has_the_task_s_pictures_in_their_order(task: str) -> None:
    settings, body = REQUESTS[task]
    further = [name for name in body.model_fields if name not in settings.model_fields]
    assert tuple(further) == TASKS[task].pictures
    assert all(body.model_fields[name].is_required() for name in further)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_request_s_ranges_are_the_model_s(task: str) -> None:
    schema = REQUESTS[task][0].model_json_schema()
    for name, (low, high) in params._LIMITS.items():
        if name in schema["properties"]:
            number = _not_null(schema, schema["properties"][name])
            assert (number["minimum"], number["maximum"]) == (low, high), name
    for name, choices in CHOICES.items():
        if name in schema["properties"]:
            assert _not_null(schema, schema["properties"][name])["enum"] == list(get_args(choices)), name


def _not_null(schema: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    """The one kind of value a field has besides null."""
    (kind,) = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    return dict(schema["$defs"][kind["$ref"].rpartition("/")[2]]) if "$ref" in kind else kind

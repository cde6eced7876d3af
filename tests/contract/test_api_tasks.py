"""POST /generate/TASK for every task: what each takes, and that a field it does not have is an error that names it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from stillmotion import AsyncClient
from stillmotion.types import REQUESTS, Job

from model.tasks import TASKS
from serving.gateway import create_app
from tests.contract.support import entry, error_of, picture, settings
from tests.support.fakes import DEFAULTS, ScriptedEngine

OWN: dict[str, dict[str, Any]] = {"text-to-video": {"prompt": "a red ball"}, "multi-view": {"elevation": 12.5}}
ENTRIES = [replace(entry(name, {**DEFAULTS, "elevation": 0.0}), task=spec) for name, spec in TASKS.items()]


@asynccontextmanager
async def serving_all(folder: Path) -> AsyncIterator[tuple[httpx2.AsyncClient, ScriptedEngine, Any]]:
    engine = ScriptedEngine()
    app = create_app(engine, ENTRIES, settings(folder))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client, engine, transport


def images(task: str) -> dict[str, bytes]:
    return {name: picture(seed=seed) for seed, name in enumerate(TASKS[task].pictures)}


async def post_json(client: httpx2.AsyncClient, task: str, fields: dict[str, Any]) -> httpx2.Response:
    encoded = {name: {"data": base64.b64encode(data).decode()} for name, data in images(task).items()}
    return await client.post(f"/generate/{task}", json={**encoded, **fields}, headers={"Prefer": "wait=20"})


async def post_form(client: httpx2.AsyncClient, task: str, fields: dict[str, Any]) -> httpx2.Response:
    files = {name: (f"{name}.png", data, "image/png") for name, data in images(task).items()}
    # A part without a filename is a plain field: so a form without pictures is multipart too.
    plain = {name: (None, str(value)) for name, value in fields.items()}
    return await client.post(f"/generate/{task}", files={**files, **plain}, headers={"Prefer": "wait=20"})


@pytest.mark.parametrize("task", sorted(TASKS))
async def test_a_form_and_json_give_the_engine_the_task_s_own_settings_and_pictures(tmp_path: Path, task: str) -> None:
    async with serving_all(tmp_path) as (client, engine, _):
        fields = {"seed": 7, "fps": 9, "max_guidance_scale": 2.5, **OWN.get(task, {})}
        for post in (post_form, post_json):
            answer = await post(client, task, fields)
            assert answer.status_code == 200, answer.text
            job = Job.model_validate(answer.json())
            assert (job.status, job.task, job.model) == ("completed", task, task)
            assert job.params.keys() - {"output_format"} == TASKS[task].settings
            assert fields.items() <= job.params.items()
        first, second = engine.requests
        assert type(first.params) is TASKS[task].params
        assert (first.params, first.images) == (second.params, second.images)
        assert len(first.images) == len(TASKS[task].pictures) == len(set(first.images))


FOREIGN: dict[str, Any] = {
    "prompt": "a ball",
    "elevation": 1.0,
    "min_guidance_scale": 1.0,
    "noise_aug_strength": 0.1,
    "resize_mode": "fit",
    "anything": 1,
}


@pytest.mark.parametrize("task", sorted(TASKS))
async def test_a_field_the_task_does_not_have_is_refused_by_name(tmp_path: Path, task: str) -> None:
    async with serving_all(tmp_path) as (client, engine, _):
        for field in FOREIGN.keys() - REQUESTS[task][0].model_fields.keys():
            for post in (post_form, post_json):
                answer = await post(client, task, {**OWN.get(task, {}), field: FOREIGN[field]})
                assert (answer.status_code, error_of(answer).code, error_of(answer).param) == (
                    422,
                    "unknown_field",
                    field,
                )
                assert task in error_of(answer).message
        assert engine.requests == []


@pytest.mark.parametrize("task", sorted(TASKS))
async def test_a_picture_the_task_does_not_have_is_refused_by_name(tmp_path: Path, task: str) -> None:
    async with serving_all(tmp_path) as (client, _, _):
        for name in {"image", "last_image", "mask"} - set(TASKS[task].pictures):
            own = {part: (None, str(value)) for part, value in OWN.get(task, {}).items()}
            files = {**images(task), **own, name: ("x.png", picture(), "image/png")}
            for answer in (
                await client.post(f"/generate/{task}", files=files),
                await post_json(client, task, {**OWN.get(task, {}), name: {"data": "AAAA"}}),
            ):
                error = error_of(answer)
                assert (answer.status_code, error.code, error.param) == (422, "unknown_field", name)


@pytest.mark.parametrize(
    ("task", "field"),
    [("text-to-video", "prompt"), ("frame-interpolation", "last_image"), ("multi-view", "image")],
)
async def test_what_a_task_needs_is_asked_for_by_name(tmp_path: Path, task: str, field: str) -> None:
    async with serving_all(tmp_path) as (client, _, _):
        parts = {**images(task), **{name: (None, str(value)) for name, value in OWN.get(task, {}).items()}}
        body = {name: {"data": "AAAA"} for name in images(task)} | OWN.get(task, {})
        del parts[field], body[field]
        parts["seed"] = (None, "1")
        for answer in (
            await client.post(f"/generate/{task}", files=parts),
            await client.post(f"/generate/{task}", json=body),
        ):
            error = error_of(answer)
            assert (answer.status_code, error.code, error.param) == (422, "missing_field", field)


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        ("text-to-video", "prompt", ""),
        ("text-to-video", "prompt", "   "),
        ("text-to-video", "prompt", "x" * 2001),
        ("multi-view", "elevation", 90.5),
        ("multi-view", "elevation", "high"),
        ("frame-interpolation", "max_guidance_scale", 31),
    ],
)
async def test_a_value_out_of_its_limits_is_refused_by_name(
    tmp_path: Path, task: str, field: str, value: object
) -> None:
    async with serving_all(tmp_path) as (client, engine, _):
        for post in (post_form, post_json):
            answer = await post(client, task, {**OWN.get(task, {}), field: value})
            assert (answer.status_code, error_of(answer).param) == (422, field)
        assert engine.requests == []


async def test_the_second_picture_is_named_if_it_cannot_be_read(tmp_path: Path) -> None:
    async with serving_all(tmp_path) as (client, _, _):
        files = {"image": ("a.png", picture(), "image/png"), "last_image": ("b.png", picture()[:100], "image/png")}
        answer = await client.post("/generate/frame-interpolation", files=files)
        assert (answer.status_code, error_of(answer).param) == (422, "last_image")
        assert (await client.get("/jobs")).json()["data"] == []


async def test_a_model_of_another_task_is_not_found(tmp_path: Path) -> None:
    async with serving_all(tmp_path) as (client, _, _):
        answer = await post_form(client, "text-to-video", {"prompt": "a ball", "model": "multi-view"})
        assert (answer.status_code, error_of(answer).code) == (422, "model_not_found")


async def test_the_sdk_asks_for_every_task(tmp_path: Path) -> None:
    async with serving_all(tmp_path) as (_, engine, transport), AsyncClient("http://test", transport=transport) as sdk:
        first, last = picture(seed=1), picture(seed=2)
        jobs = [
            await sdk.generate(first, seed=1, interval=0.01),
            await sdk.text_to_video("a red ball", seed=1, interval=0.01),
            await sdk.frame_interpolation(first, last, seed=1, interval=0.01),
            await sdk.multi_view(first, elevation=-5.0, seed=1, interval=0.01),
        ]
        assert [job.task for job in jobs] == ["image-to-video", "text-to-video", "frame-interpolation", "multi-view"]
        assert jobs[1].params["prompt"] == "a red ball"
        assert jobs[3].params["elevation"] == -5.0
        assert [len(request.images) for request in engine.requests] == [1, 0, 2, 1]
        assert engine.requests[2].images[0] == engine.requests[0].images[0] != engine.requests[2].images[1]


async def test_the_openapi_document_describes_every_task(tmp_path: Path) -> None:
    async with serving_all(tmp_path) as (client, _, _):
        document = (await client.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        for task, spec in TASKS.items():
            content = document["paths"][f"/generate/{task}"]["post"]["requestBody"]["content"]
            for kind in ("multipart/form-data", "application/json"):
                schema = schemas[content[kind]["schema"]["$ref"].rpartition("/")[2]]
                assert set(schema["properties"]) == {*spec.pictures, *REQUESTS[task][0].model_fields}
                needed = {*spec.pictures, *({"prompt"} if task == "text-to-video" else ())}
                assert set(schema.get("required", [])) == needed
                assert schema["additionalProperties"] is False


def test_the_wire_s_settings_are_the_model_s(tmp_path: Path) -> None:
    around = {"model", "output_format", "priority", "deadline_s", "metadata", "webhook", "previews", "interpolate"}
    around |= {"stages", "upscale", "upscaler", "reuse"}
    for task in TASKS:
        assert set(REQUESTS[task][0].model_fields) - around == TASKS[task].settings

"""LoRAs over HTTP: what is offered, what a request gets, and what is refused; the SDK sends the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from stillmotion import AsyncClient
from stillmotion.types import Job, LoraInfo, ModelList

from model.lora.catalog import LoraEntry, LoraUse
from model.tasks import TASKS
from serving.gateway import create_app
from tests.contract.support import entry, error_of, picture, settings
from tests.support.fakes import DEFAULTS, ScriptedEngine

PAN = LoraEntry("pan", Path("pan.safetensors"), "0123456789ab", 16, 16.0, "image-to-video", "scripted@0123456789ab")
TILT = replace(PAN, name="tilt", version="ba9876543210", base="")


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[httpx2.AsyncClient, ScriptedEngine, httpx2.ASGITransport]]:
    """Two LoRAs for image-to-video, one for text-to-video, none for the rest."""
    models = [replace(entry(), loras=(PAN, TILT)), entry("bare")]
    for name in ("text-to-video", "multi-view"):
        models.append(
            replace(
                entry(name, {**DEFAULTS, "elevation": 0.0}), task=TASKS[name], loras=(TILT,) if "text" in name else ()
            )
        )
    engine = ScriptedEngine()
    app = create_app(engine, models, settings(folder))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client, engine, transport


async def post(client: httpx2.AsyncClient, task: str = "image-to-video", **fields: Any) -> httpx2.Response:
    own: dict[str, Any] = {"prompt": (None, "a ball")} if task == "text-to-video" else {"image": ("a.png", picture())}
    plain = {name: (None, str(value)) for name, value in fields.items()}
    return await client.post(f"/generate/{task}", files={**own, **plain}, headers={"Prefer": "wait=20"})


async def test_models_tell_what_can_be_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, _, _):
        models = ModelList.model_validate((await client.get("/models")).json()).data
        assert models[0].loras == [
            LoraInfo(id="pan", version="0123456789ab", rank=16, base="scripted@0123456789ab"),
            LoraInfo(id="tilt", version="ba9876543210", rank=16),
        ]
        assert [len(model.loras) for model in models] == [2, 0, 1, 0]


async def test_a_job_has_the_lora_with_its_version_and_a_strength(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, engine, _):
        asked: list[dict[str, Any]] = [
            {"lora": "pan"},
            {"lora": PAN.pinned, "lora_scale": -0.5},
            {},
            {"task": "text-to-video", "lora": "tilt", "lora_scale": 2},
        ]
        for fields in asked:
            answer = await post(client, **fields)
            assert answer.status_code == 200, answer.text
            job = Job.model_validate(answer.json())
            wanted = engine.requests[-1].params.adapter
            told = (job.params["lora"], job.params["lora_scale"])
            assert told == ((None, None) if wanted is None else (f"{wanted.name}@{wanted.version}", wanted.scale))
        assert [request.params.adapter for request in engine.requests] == [
            LoraUse("pan", PAN.version, 1.0),
            LoraUse("pan", PAN.version, -0.5),
            None,
            LoraUse("tilt", TILT.version, 2.0),
        ]


@pytest.mark.parametrize(
    ("fields", "code", "param", "says"),
    [
        ({"lora": "zoom"}, "lora_not_found", "lora", "there are: pan, tilt"),
        ({"lora": "pan", "model": "bare"}, "lora_not_found", "lora", "there are none"),
        ({"lora": "pan@ffffffffffff"}, "other_version", "lora", "has version 0123456789ab here"),
        ({"lora": "../pan"}, "invalid_value", "lora", ""),
        ({"lora": "pan\x00"}, "invalid_value", "lora", ""),
        ({"lora_scale": 1}, "invalid_value", "lora_scale", "go together"),
        ({"lora": "pan", "lora_scale": 2.5}, "out_of_range", "lora_scale", ""),
        ({"lora": "pan", "lora_scale": "nan"}, "out_of_range", "lora_scale", ""),
        ({"lora": "pan", "lora_scale": "much"}, "invalid_value", "lora_scale", ""),
        ({"lora": "pan", "task": "multi-view"}, "unknown_field", "lora", "multi-view"),
    ],
)
async def test_what_cannot_be_applied_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], code: str, param: str, says: str
) -> None:
    async with serving(tmp_path) as (client, engine, _):
        answer = await post(client, **fields)
        error = error_of(answer)
        assert (answer.status_code, error.param) == (422, param)
        assert says in error.message
        assert error.code == code
        assert engine.requests == []


async def test_the_sdk_asks_for_it_and_reads_what_there_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, engine, transport), AsyncClient("http://test", transport=transport) as sdk:
        job = await sdk.generate(picture(), lora="pan", lora_scale=0.25, interval=0.01)
        assert (job.params["lora"], job.params["lora_scale"]) == (PAN.pinned, 0.25)
        await sdk.text_to_video("a ball", lora="tilt", interval=0.01)
        assert [request.params.adapter for request in engine.requests] == [
            LoraUse("pan", PAN.version, 0.25),
            LoraUse("tilt", TILT.version, 1.0),
        ]
        assert [one.id for one in (await sdk.models())[0].loras] == ["pan", "tilt"]


async def test_an_idempotency_key_tells_loras_apart(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, engine, _):
        files = {"image": ("a.png", picture()), "lora": (None, "pan")}
        headers = {"Idempotency-Key": "k"}
        first = await client.post("/generate/image-to-video", files=files, headers=headers)
        again = await client.post("/generate/image-to-video", files=files, headers=headers)
        assert first.json()["id"] == again.json()["id"]
        other = await client.post("/generate/image-to-video", files={**files, "lora": (None, "tilt")}, headers=headers)
        assert (other.status_code, error_of(other).type) == (409, "conflict")
        assert len(engine.requests) <= 1

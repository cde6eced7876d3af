"""Later stages over HTTP: what a submission may say, what becomes of it, and clips that are made longer afterwards."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from stillmotion import AsyncClient
from stillmotion.types import Job

from model.catalog import ModelEntry
from serving.gateway import create_app
from tests.contract.support import error_of, picture, settings
from tests.support.fakes import model_entry
from tests.unit.serving.interpolation.support import BETWEEN, STILL, Script

TEXT = model_entry("text-to-video", name="words")
STAGES = [{"kind": "extend", "num_frames": 11}, {"kind": "interpolate"}, {"kind": "upscale", "factor": 2}]


@asynccontextmanager
async def serving(
    folder: Path, models: Sequence[ModelEntry] = (STILL, TEXT, BETWEEN)
) -> AsyncIterator[tuple[httpx2.AsyncClient, Script]]:
    engine = Script()
    app = create_app(engine, models, settings(folder))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client, engine


async def post(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    files = {"image": ("still.png", picture(), "image/png")}
    data = {name: json.dumps(value) if isinstance(value, list) else str(value) for name, value in fields.items()}
    return await client.post("/generate/image-to-video", files=files, data=data, headers={"Prefer": "wait=20"})


async def test_a_list_of_stages_is_one_job(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, _):
        job = Job.model_validate((await post(client, stages=STAGES, seed=7)).json())
        assert job.status == "completed", job.error
        assert job.output is not None
        size = (job.output.num_frames, job.output.fps, job.output.width, job.output.height)
        assert size == (41, 28, 192, 128)
        assert (job.params["num_frames"], job.params["extend"]["num_frames"]) == (5, 11)
        assert job.step == job.total_steps == 4 + 2 * 4 + 10 * 4 + 41
        manifest = (await client.get(job.urls.content, params={"variant": "manifest"})).json()
        assert {"extend", "interpolate", "upscale"} <= manifest.keys()
        left = {path.name for path in (tmp_path / "artifacts" / job.id).iterdir()}
        assert not [name for name in left if name.endswith((".kept", ".state"))], "what was kept goes with the end"
        seen = (await client.get(f"/v1/videos/{job.id}")).json()
        assert (seen["size"], seen["num_frames"], seen["fps"]) == ("192x128", 41, 28)


@pytest.mark.slow
async def test_the_short_form_says_the_same(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, _):
        long = Job.model_validate((await post(client, stages=STAGES, seed=7)).json())
        short = Job.model_validate((await post(client, num_frames=11, interpolate="true", upscale=2, seed=7)).json())
        assert short.output is not None
        assert long.output is not None
        assert short.params == long.params
        assert short.output.frames_sha256 == long.output.frames_sha256


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"stages": [STAGES[1], STAGES[0]]}, "invalid_value", "stages.1"),
        ({"stages": [STAGES[2], STAGES[2]]}, "invalid_value", "stages.1"),
        ({"stages": [STAGES[1]], "interpolate": "true"}, "duplicate_field", "stages.0"),
        ({"stages": [{"kind": "extend", "num_frames": 5}]}, "out_of_range", "num_frames"),
        ({"stages": [{"kind": "upscale", "network": "esrgan"}]}, "model_not_found", "upscaler"),
        ({"stages": [{"kind": "extend", "num_frames": 9, "model": "words"}]}, "model_not_found", "stages"),
        ({"upscaler": "lanczos"}, "invalid_value", "upscaler"),
        ({"num_frames": 4}, "invalid_value", "num_frames"),
    ],
)
async def test_what_cannot_be_done_names_its_field(
    tmp_path: Path, fields: dict[str, Any], code: str, param: str
) -> None:
    async with serving(tmp_path) as (client, engine):
        error = error_of(await post(client, **fields))
        assert (error.code, error.param) == (code, param)
        assert engine.seen == {}


async def test_a_sentence_s_clip_goes_on_by_an_image_to_video_model(tmp_path: Path) -> None:
    body = {"prompt": "a fox", "num_frames": 9}
    async with serving(tmp_path) as (client, engine):
        answer = await client.post("/generate/text-to-video", json=body, headers={"Prefer": "wait=20"})
        job = Job.model_validate(answer.json())
        assert job.status == "completed", job.error
        assert engine.seen[f"{job.id}.window-0"].model == "still"
    async with serving(tmp_path / "other", (TEXT, BETWEEN)) as (client, _):
        error = error_of(await client.post("/generate/text-to-video", json=body))
        assert (error.code, error.param) == ("no_extension_model", "num_frames")


async def test_a_finished_clip_is_made_longer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, engine):
        first = Job.model_validate((await post(client, seed=7, motion_bucket_id=9, interpolate="true")).json())
        made = (await client.post(f"/v1/videos/{first.id}/extensions", json={"prompt": "on", "seconds": 1})).json()
        assert (made["object"], made["num_frames"], made["fps"]) == ("video", 4 * 11 + 1, 28), "seven frames more"
        listed = (await client.get(f"/jobs/{made['id']}")).json()
        job = Job.model_validate(listed)
        assert job.metadata["extends"] == first.id
        assert (job.seed, job.params["motion_bucket_id"], job.params["extend"]["num_frames"]) == (7, 9, 12)
        stock = await client.post("/v1/videos/extensions", data={"prompt": "on", "seconds": "1", "video[id]": first.id})
        assert stock.json()["num_frames"] == 45
        again = await client.post(f"/jobs/{first.id}/extend", json={"num_frames": 20})
        assert (again.status_code, again.json()["params"]["extend"]["num_frames"]) == (202, 20)
        assert again.headers["Location"].startswith("/jobs/")
        async with AsyncClient("http://test", transport=client._transport) as sdk:
            longer = await sdk.extend(first, seconds=2, timeout=20)
        assert longer.params["extend"]["num_frames"] == 19
        assert longer.status == "completed"
        assert engine.seen[longer.id].images == engine.seen[first.id].images


async def test_extensions_that_cannot_be(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, _):
        job = Job.model_validate((await post(client, seed=7)).json())
        route = f"/v1/videos/{job.id}/extensions"
        for body, status, param in (
            ({}, 422, "seconds"),
            ({"seconds": 1, "num_frames": 9}, 422, "seconds"),
            ({"seconds": "soon"}, 422, "seconds"),
            ({"num_frames": 5}, 422, "num_frames"),
            ({"num_frames": 9, "video": {"id": "job_other"}}, 422, "video"),
            ({"num_frames": 9, "seed": 3}, 422, "seed"),
        ):
            answer = await client.post(route, json=body)
            assert (answer.status_code, error_of(answer).param) == (status, param), body
        assert (await client.post("/v1/videos/job_absent/extensions", json={"num_frames": 9})).status_code == 404
        assert error_of(await client.post("/v1/videos/extensions", json={"seconds": 1})).param == "video"

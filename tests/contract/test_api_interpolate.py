"""`interpolate` in a submission: what it may say, what is stored and counted of it, every refusal with its remedy."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from stillmotion import AsyncClient
from stillmotion.types import Job

from model.catalog import ModelEntry
from model.tasks import TASKS
from serving.gateway import create_app
from tests.contract.support import entry, error_of, picture, settings
from tests.support.fakes import DEFAULTS
from tests.unit.serving.interpolation.support import BETWEEN, PAIRS, STEPS, STILL, Script

OTHERS = [replace(entry(name, {**DEFAULTS, "elevation": 0.0}), task=TASKS[name]) for name in ("multi-view",)]
TEXT = replace(entry("text"), task=TASKS["text-to-video"])


@asynccontextmanager
async def serving(
    folder: Path, models: Sequence[ModelEntry] = (STILL, TEXT, BETWEEN, *OTHERS), **script: Any
) -> AsyncIterator[tuple[httpx2.AsyncClient, Script]]:
    engine = Script(**script)
    app = create_app(engine, models, settings(folder))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client, engine


async def post(client: httpx2.AsyncClient, task: str = "image-to-video", **fields: Any) -> httpx2.Response:
    names = TASKS[task].pictures
    files = {name: (f"{name}.png", picture(seed=seed), "image/png") for seed, name in enumerate(names)}
    plain = {name: (None, str(value)) for name, value in fields.items()}
    return await client.post(f"/generate/{task}", files={**files, **plain}, headers={"Prefer": "wait=20"})


async def post_json(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    body = {"image": {"data": base64.b64encode(picture()).decode()}, **fields}
    return await client.post("/generate/image-to-video", json=body, headers={"Prefer": "wait=20"})


async def test_a_form_says_yes_or_a_name(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, engine):
        jobs = [Job.model_validate((await post(client, interpolate=said)).json()) for said in ("True", "on", "between")]
        videos = [(await client.get(f"/v1/videos/{job.id}")).json() for job in jobs]
    for job, video in zip(jobs, videos, strict=True):
        assert job.status == "completed", job.error
        assert job.total_steps == job.step == STEPS + PAIRS * STEPS
        told = job.params["interpolate"]
        assert (told["model"], told["model_version"]) == ("between", BETWEEN.version)
        assert (told["params"]["num_frames"], told["params"]["fps"]) == (5, 28)
        assert job.output is not None
        assert (job.output.num_frames, job.output.fps) == (17, 28)
        assert video["seconds"] == "0.607"  # 17 frames at 28 a second
    assert len(engine.seen) == 3 * (1 + PAIRS)


async def test_json_and_the_sdk_say_it_too_and_text_can_be_interpolated(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, _):
        for said in (True, "between"):
            answer = await post_json(client, interpolate=said)
            assert answer.json()["output"]["num_frames"] == 17, answer.text
        sdk = AsyncClient("http://test", transport=client._transport)
        async with sdk:
            of_a_still = await sdk.generate(picture(), interpolate=True, timeout=20)
            of_words = await sdk.text_to_video("a red ball", interpolate="between", timeout=20)
        assert [job.output.num_frames for job in (of_a_still, of_words) if job.output is not None] == [17, 17]


async def test_no_is_no(tmp_path: Path) -> None:
    async with serving(tmp_path, (STILL,)) as (client, engine):
        for said in ("false", "off", "0"):
            job = Job.model_validate((await post(client, interpolate=said)).json())
            assert "interpolate" not in job.params
            assert job.total_steps == STEPS
    assert len(engine.seen) == 3


SECOND = replace(BETWEEN, name="second")
SMALL = replace(BETWEEN, name="small", height=16, width=16, unit=16)
FIXED = replace(BETWEEN, name="fixed", height=32, width=32, fixed_size=True)
REFUSALS = [
    ((STILL,), "true", "no_interpolation_model", "stillmotion serve --model"),
    ((STILL, BETWEEN, SECOND), "true", "ambiguous_model", "between, second"),
    ((STILL, BETWEEN), "nobody", "model_not_found", "served: between"),
    ((STILL, BETWEEN), "still", "model_not_found", "served: between"),
    ((STILL, SMALL), "true", "invalid_value", "width must be|height must be"),
    ((STILL, FIXED), "true", "invalid_value", "--free-size"),
    ((STILL, replace(BETWEEN, num_frames=(7,))), "true", "invalid_value", "makes 7 frames, not 5"),
    ((replace(STILL, num_frames=(1,)), BETWEEN), "true", "invalid_value", "no neighbours"),
]


@pytest.mark.parametrize(("models", "said", "code", "remedy"), REFUSALS)
async def test_what_cannot_be_is_refused_at_once_with_a_remedy(
    tmp_path: Path, models: tuple[ModelEntry, ...], said: str, code: str, remedy: str
) -> None:
    async with serving(tmp_path, models) as (client, engine):
        answer = await post(client, interpolate=said)
        error = error_of(answer)
        assert (answer.status_code, error.code, error.param) == (422, code, "interpolate")
        assert any(one in error.message for one in remedy.split("|")), error.message
        assert (await client.get("/jobs")).json()["data"] == []
    assert not engine.seen
    assert list((tmp_path / "artifacts").iterdir()) == []


async def test_other_tasks_have_no_such_field_and_nonsense_is_refused_by_its_name(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, _):
        for task in ("frame-interpolation", "multi-view"):
            error = error_of(await post(client, task, interpolate="true"))
            assert (error.code, error.param) == ("unknown_field", "interpolate")
        for said in (3, "", None, ["between"]):
            answer = await post_json(client, interpolate=said)
            assert answer.status_code == 422
            assert (error_of(answer).param or "").partition(".")[0] == "interpolate"


async def test_a_deadline_is_judged_by_both_stages(tmp_path: Path) -> None:
    async with serving(tmp_path, seconds=10.0) as (client, _):
        alone = await post(client, deadline_s=30)
        assert alone.status_code in (200, 202), alone.text
        both = await post(client, deadline_s=30, interpolate="true")
    assert (both.status_code, error_of(both).code) == (409, "deadline_infeasible")
    assert "50 s" in error_of(both).message  # 10 for the clip, and 10 for each of 4 pairs


async def test_a_batch_s_rows_carry_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, engine):
        body = {"image": {"data": base64.b64encode(picture()).decode()}, "interpolate": True}
        line = json.dumps({"custom_id": "a", "url": "/generate/image-to-video", "body": body})
        answer = await client.post("/batches", content=line, headers={"Content-Type": "application/jsonl"})
        assert answer.status_code == 202, answer.text
        while (await client.get(f"/batches/{answer.json()['id']}")).json()["counts"]["completed"] != 1:
            await asyncio.sleep(0.02)
    assert len(engine.seen) == 1 + PAIRS
    assert {one.share.priority for one in engine.seen.values()} == {"offline"}


async def test_a_cancelled_job_says_at_which_step_of_both_stages(tmp_path: Path) -> None:
    async with serving(tmp_path, capacity=1) as (client, engine):

        def cancel(job_id: str, step: int) -> None:
            if job_id.endswith("pair-1") and step == 2:
                asking.append(asyncio.create_task(client.post(f"/jobs/{job_id.partition('.')[0]}/cancel")))

        asking: list[asyncio.Task[httpx2.Response]] = []
        engine.at_step = cancel
        job = Job.model_validate((await post(client, interpolate="true")).json())
        await asyncio.gather(*asking)
    assert job.status == "cancelled"
    assert job.cancelled_at_step is not None
    assert STEPS + STEPS + 2 <= job.cancelled_at_step < job.total_steps
    assert job.timings["compute"] > 0
    assert not any("kept" in path.name or "state" in path.name for path in (tmp_path / "artifacts").rglob("*"))

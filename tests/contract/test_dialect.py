"""Requests of other video servers' clients at /v1/videos, in each form of body, and the synchronous route."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serving.engine.protocol import Failed
from tests.contract.support import Running, error_of, finished, listening, picture, running
from tests.support.fakes import ScriptedEngine

DATA_URL = "data:image/png;base64," + base64.b64encode(picture()).decode()
FIELDS = {"prompt": "a fox", "seed": "42", "fps": "6", "num_inference_steps": "2", "size": "64x64", "seconds": "4"}


async def send(app: Running, kind: str, fields: dict[str, str], route: str = "/v1/videos") -> httpx2.Response:
    """The same request as a form with a file, as a form without parts, or as JSON."""
    if kind == "parts":
        files = {"input_reference": ("still.png", picture(), "image/png")}
        return await app.client.post(route, data=fields, files=files)
    body = {**fields, "input_reference": DATA_URL}
    return await app.client.post(route, **{"urlencoded": {"data": body}, "json": {"json": body}}[kind])


@pytest.mark.parametrize("kind", ["parts", "urlencoded", "json"])
async def test_a_request_in_each_form_of_body(kind: str, tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        answer = await send(app, kind, FIELDS)
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert (made["seed"], made["fps"], made["num_inference_steps"], made["size"]) == (42, 6, 2, "64x64")
        assert (made["num_frames"], made["seconds"], made["quality"]) == (5, "0.833", "standard")
        assert (made["url"], made["file_name"], made["media_type"]) == (None, None, "video/mp4")
        job = await app.until(made["id"], "completed")
        request = app.engine.requests[0]
        assert (request.params.seed, request.params.fps, request.params.num_inference_steps) == (42, 6, 2)
        done = (await app.client.get(f"/v1/videos/{job.id}")).json()
        assert done["file_name"] == f"{job.id}.mp4"
        assert done["url"] == f"{app.client.base_url}/v1/videos/{job.id}/content", (
            "in full: AIPerf asks for it as it stands"
        )
        assert done["stage_durations"] == {"denoise": 0.5}
        assert done["inference_time_s"] >= 0
        assert (await app.client.get(done["url"], params={"video_id": job.id})).content == finished(request).video
        assert (await app.client.get(done["url"], params={"video_id": "another"})).status_code == 422


async def test_what_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        for kind in ("parts", "urlencoded", "json"):
            error = error_of(await send(app, kind, {**FIELDS, "negative_prompt": "blurry"}))
            assert (error.code, error.param) == ("unsupported_field", "negative_prompt")
        files = {"control_reference": ("edges.mp4", b"x", "video/mp4")}
        error = error_of(await app.client.post("/v1/videos", data={"prompt": "x"}, files=files))
        assert (error.code, error.param) == ("unsupported_field", "control_reference")
        assert (await app.stored())[0] == 0


async def test_objects_in_a_form_are_json(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        fields = {**FIELDS, "extra_params": json.dumps({"motion_bucket_id": 40})}
        job = (await send(app, "parts", fields)).json()
        await app.until(job["id"], "completed")
        assert app.engine.requests[0].params.motion_bucket_id == 40
        bracketed = {**FIELDS, "extra_params[motion_bucket_id]": "50", "video_params[fps]": "9"}
        job = (await send(app, "parts", {name: text for name, text in bracketed.items() if name != "fps"})).json()
        await app.until(job["id"], "completed")
        params = app.engine.requests[1].params
        assert (params.motion_bucket_id, params.fps) == (50, 9), "as OpenAI's client writes objects in a form"
        error = error_of(await send(app, "parts", {**FIELDS, "extra_params": "{"}))
        assert (error.code, error.param) == ("invalid_value", "extra_params")


async def test_lists_in_both_orders(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        first, second = [(await send(app, "json", FIELDS)).json()["id"] for _ in range(2)]
        for order, ids in (("asc", [first, second]), ("desc", [second, first])):
            page = (await app.client.get("/v1/videos", params={"order": order})).json()
            assert [found["id"] for found in page["data"]] == ids


async def test_sync_answers_with_the_file(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        answer = await send(app, "parts", FIELDS, "/v1/videos/sync")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
        assert answer.content == finished(app.engine.requests[0]).video
        job = await app.until(answer.headers["x-video-id"], "completed")
        assert job.seed == 42


async def test_sync_says_why_there_is_no_file(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(ending=Failed("generation_failed", "the latents overflowed"))) as app:
        answer = await send(app, "json", FIELDS, "/v1/videos/sync")
        assert (answer.status_code, error_of(answer).code) == (500, "generation_failed")
        assert answer.headers["x-video-id"].startswith("job_")


async def test_sync_of_a_job_that_is_cancelled(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        waiting = asyncio.create_task(send(app, "json", FIELDS, "/v1/videos/sync"))
        while not app.engine.requests:
            await asyncio.sleep(0.01)
        await app.client.post(f"/jobs/{app.engine.requests[0].job_id}/cancel")
        answer = await waiting
        assert (answer.status_code, error_of(answer).code) == (409, "cancelled")


async def test_who_goes_away_from_sync_has_the_job_cancelled(tmp_path: Path) -> None:
    async with listening(tmp_path, ScriptedEngine(gated=True)) as app:
        body: dict[str, Any] = {**FIELDS, "input_reference": DATA_URL}
        waiting = asyncio.create_task(app.client.post("/v1/videos/sync", json=body, timeout=None))
        while not app.engine.requests:
            await asyncio.sleep(0.01)
        waiting.cancel()  # which closes its connection
        job = await app.until(app.engine.requests[0].job_id, "cancelled")
        assert job.cancelled_at_step == 0

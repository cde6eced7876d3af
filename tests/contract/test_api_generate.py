"""POST /generate/image-to-video: what a good request becomes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stillmotion.types import Job

from tests.contract.support import error_of, picture, running
from tests.support.fakes import DEFAULTS, ScriptedEngine


async def test_a_picture_becomes_a_completed_job(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        answer = await app.post(seed=7, fps=12)
        assert answer.status_code == 202
        job = Job.model_validate(answer.json())
        assert answer.headers["location"] == job.urls.self == f"/jobs/{job.id}"
        assert (job.status, job.progress, job.queue_position, job.total_steps) == ("queued", 0, 0, 4)
        done = await app.until(job.id, "completed")
        assert (done.progress, done.step, done.seed, done.params["fps"]) == (100, 4, 7, 12)
        assert done.output is not None
        assert (done.output.width, done.output.height, done.output.num_frames, done.output.fps) == (96, 64, 5, 12)
        assert done.created_at <= done.started_at <= done.completed_at  # type: ignore[operator]
        assert done.timings == {"denoise": 0.5}


async def test_params_are_complete_and_are_what_the_engine_gets(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job = await app.submit(num_inference_steps=9, solver="heun", schedule="align-your-steps")
        assert job.params == {
            **DEFAULTS,
            "num_inference_steps": 9,
            "solver": "heun",
            "schedule": "align-your-steps",
            "num_frames": 5,
            "height": 64,
            "width": 96,
            "seed": job.seed,
            "lora": None,
            "lora_scale": None,
            "output_format": "mp4",
        }
        await app.until(job.id, "completed")
        (request,) = app.engine.requests
        assert (request.job_id, request.model, request.output_format) == (job.id, "scripted", "mp4")
        assert (request.params.num_inference_steps, request.params.solver, request.params.seed) == (9, "heun", job.seed)


async def test_a_form_and_json_make_the_same_job(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        fields = {"seed": 5, "fps": 9, "noise_aug_strength": 0.5, "output_format": "gif", "model": "second"}
        form = await app.submit(**fields, metadata=json.dumps({"shot": "12"}))
        body = {**fields, "metadata": {"shot": "12"}, "image": {"data": base64.b64encode(picture()).decode()}}
        answer = await app.client.post("/generate/image-to-video", json=body)
        assert answer.status_code == 202
        other = Job.model_validate(answer.json())
        assert (other.params, other.metadata, other.model) == (form.params, form.metadata, form.model)
        assert (other.model, other.metadata) == ("second", {"shot": "12"})
        await app.until(other.id, "completed")
        first, second = app.engine.requests
        assert first.images == second.images


async def test_the_engine_gets_a_clean_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a secret place"
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
    async with running(tmp_path) as app:
        answer = await app.client.post(
            "/generate/image-to-video", files={"image": ("a.jpg", buffer.getvalue(), "image/jpeg")}
        )
        await app.until(answer.json()["id"], "completed")
        with Image.open(io.BytesIO(app.engine.requests[0].images[0])) as got:
            assert (got.format, got.mode, got.size) == ("PNG", "RGB", (96, 64)), "turned, and fitted to the clip"
        assert b"secret" not in app.engine.requests[0].images[0]


async def test_a_seed_left_out_is_drawn_and_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        seeds = {(await app.submit()).seed for _ in range(4)}
        assert len(seeds) == 4
        assert all(0 <= seed < 2**53 for seed in seeds)
        largest = await app.submit(seed=2**63 - 1)
        assert (await app.until(largest.id, "completed")).seed == 2**63 - 1


async def test_prefer_wait_holds_the_answer_until_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        answer = await app.post(headers={"Prefer": "respond-async, wait=20"})
        assert answer.status_code == 200
        assert answer.headers["preference-applied"] == "wait=20"
        assert answer.json()["status"] == "completed"


async def test_prefer_wait_gives_up_in_time(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        answer = await app.post(headers={"Prefer": "wait=1"})
        assert (answer.status_code, answer.json()["status"]) == (202, "in_progress")
        assert answer.json()["completed_at"] is None


@pytest.mark.parametrize("wait", ["61", "-1", "soon", "1.5", ""])
async def test_a_wait_that_cannot_be_kept_is_refused(tmp_path: Path, wait: str) -> None:
    async with running(tmp_path) as app:
        answer = await app.post(headers={"Prefer": f"wait={wait}"})
        assert (answer.status_code, error_of(answer).param) == (422, "Prefer")
        assert await app.stored() == (0, [])


async def test_the_same_idempotency_key_makes_one_job(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        key = {"Idempotency-Key": "abc"}
        first = await app.post(headers=key)
        again = await app.post(headers=key)
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json()["id"] == again.json()["id"]
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        await app.until(first.json()["id"], "completed")
        late = await app.post(headers=key)
        assert late.json()["status"] == "completed"
        assert (await app.stored())[0] == 1


async def test_an_idempotency_key_with_another_body_is_a_conflict(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        key = {"Idempotency-Key": "abc"}
        await app.submit(headers=key, seed=1)
        other_field = await app.post(headers=key, seed=2)
        other_picture = await app.client.post(
            "/generate/image-to-video", files={"image": picture(seed=9)}, data={"seed": "1"}, headers=key
        )
        for answer in (other_field, other_picture):
            assert (answer.status_code, error_of(answer).code) == (409, "idempotency_mismatch")
        assert (await app.stored())[0] == 1


async def test_racing_repeats_make_one_job(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        answers = await asyncio.gather(*(app.post(headers={"Idempotency-Key": "k"}, seed=1) for _ in range(6)))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        count, files = await app.stored()
        assert count == 1
        assert len(files) == 2  # the job's folder and the picture in it


async def test_beyond_the_queue_limit_is_429_with_retry_after(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True), queue_limit=2) as app:
        first = await app.submit()
        await app.until(first.id, "in_progress")
        waiting = [await app.submit(headers={"Idempotency-Key": str(number)}, seed=1) for number in range(2)]
        assert [job.queue_position for job in waiting] == [0, 1]
        before = await app.stored()
        answer = await app.post()
        assert (answer.status_code, error_of(answer).code) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert await app.stored() == before
        assert (await app.post(headers={"Idempotency-Key": "0"}, seed=1)).json()["id"] == waiting[0].id
        app.engine.gate.set()
        await app.until(waiting[1].id, "completed")
        await app.submit()


async def test_the_oldest_of_the_highest_priority_runs_first(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        first = await app.submit()
        await app.until(first.id, "in_progress")
        jobs = [await app.submit(priority=priority) for priority in ("low", "normal", "high", "normal", "high")]
        positions = [(await app.until(job.id, "queued")).queue_position for job in jobs]
        assert positions == [4, 2, 0, 3, 1]
        app.engine.gate.set()
        for job in jobs:
            await app.until(job.id, "completed")
        order = [request.job_id for request in app.engine.requests]
        assert order == [first.id, *(jobs[index].id for index in (2, 4, 1, 3, 0))]


async def test_no_more_in_flight_than_the_engine_takes(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(capacity=3)) as app:
        jobs = [await app.submit() for _ in range(8)]
        for job in jobs:
            await app.until(job.id, "completed")
        assert app.engine.most_in_flight <= 3


async def test_jobs_wait_for_the_engine_to_be_warm(tmp_path: Path) -> None:
    engine = ScriptedEngine(warm=asyncio.Event())
    async with running(tmp_path, engine) as app:
        job = await app.submit()
        ready = await app.client.get("/health/ready")
        assert (ready.status_code, error_of(ready).code) == (503, "not_ready")
        assert int(ready.headers["retry-after"]) >= 1
        assert (await app.client.get("/health/live")).json()["status"] == "live"
        state = await app.client.get("/health")
        assert (state.status_code, state.json()["status"]) == (200, "not_ready"), "a page polls it without an error"
        assert (await app.client.get(f"/jobs/{job.id}")).json()["status"] == "queued"
        assert engine.warm is not None
        engine.warm.set()
        await app.until(job.id, "completed")
        assert (await app.client.get("/health/ready")).json()["status"] == "ready"
        assert (await app.client.get("/health")).json()["status"] == "ready"


async def test_an_engine_that_cannot_start_is_said_so(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(start_failure=RuntimeError("no such device"))) as app:
        ready = await app.client.get("/health/ready")
        assert (ready.status_code, "no such device" in error_of(ready).message) == (503, True)
        assert "no such device" in (await app.client.get("/health")).json()["detail"]
        refused = await app.post()
        assert (refused.status_code, error_of(refused).type) == (503, "unavailable")
        assert await app.stored() == (0, [])


async def test_stopping_the_app_stops_the_engine(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        job = await app.submit()
        await app.until(job.id, "in_progress")
    assert app.engine.stopped


async def test_jobs_outlive_the_server(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        running_job = await app.submit(seed=1)
        waiting_job = await app.submit(seed=2)
        await app.until(running_job.id, "in_progress")
    orphan = tmp_path / "artifacts" / "job_orphan"
    orphan.mkdir()
    half = tmp_path / "artifacts" / waiting_job.id / ".video.mp4.1.part"
    half.write_bytes(b"half")
    for left in (orphan, half):
        os.utime(left, (0, 0))  # long ago: a young one may be another server's, at work
    async with running(tmp_path) as app:
        for job in (running_job, waiting_job):
            assert (await app.until(job.id, "completed")).seed == job.seed
        while [name for name in (await app.stored())[1] if "orphan" in name or name.endswith(".part")]:
            await asyncio.sleep(0.01)  # swept in the background; the test's own time limit ends the wait

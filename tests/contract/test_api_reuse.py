"""`reuse: true`: an identical request of the same key is answered with the finished job, and nothing else is."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import update
from stillmotion.webhooks import verify

from serving.jobs.reuse import clip_identity
from serving.jobs.tables import JobRow
from tests.contract.support import Running, error_of, picture, running
from tests.contract.test_keys import make
from tests.support.fakes import ScriptedEngine
from tests.unit.serving.jobs.test_transitions import new_job
from tests.unit.serving.jobs.test_webhooks import Receiver

SECRET = "whsec_" + base64.b64encode(b"nobody else knows").decode()


async def finished_job(app: Running, headers: dict[str, str] | None = None, **fields: Any) -> str:
    """The id of a completed job of seed 7."""
    job = await app.submit(headers=headers, **{"seed": 7, **fields})
    while (await app.client.get(job.urls.self, headers=headers)).json()["status"] != "completed":
        await asyncio.sleep(0.005)
    return job.id


def is_reused(answer: httpx2.Response, job_id: str) -> bool:
    assert answer.status_code in (200, 202), answer.text
    reused = answer.headers.get("job-reused") == "true"
    assert reused == (answer.json()["id"] == job_id) == (answer.status_code == 200)
    assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"
    return reused


async def test_the_finished_job_is_the_answer_and_nothing_is_computed(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job_id = await finished_job(app, metadata='{"take": "1"}')
        before = await app.stored()
        answer = await app.post(seed=7, reuse=True, priority="high", previews=False, metadata='{"take": "2"}')
        assert is_reused(answer, job_id)
        assert (answer.json()["status"], answer.json()["metadata"]) == ("completed", {"take": "1"})
        assert await app.stored() == before
        assert len(app.engine.requests) == 1
        assert not is_reused(await app.post(seed=7), job_id), "only who asks for it"


async def test_another_request_is_another_job(tmp_path: Path) -> None:
    others: dict[str, Any] = {
        "seed": 8,
        "fps": 8,
        "num_inference_steps": 5,
        "output_format": "gif",
        "model": "second",
        "upscale": 2,
    }
    async with running(tmp_path) as app:
        job_id = await finished_job(app)
        for name, value in others.items():
            assert not is_reused(await app.post(**{"seed": 7, "reuse": True, name: value}), job_id), name


async def test_a_default_said_and_the_same_file_sent_another_way_are_the_same(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job_id = await finished_job(app)
        assert is_reused(await app.post(seed=7, reuse=True, fps=7, max_guidance_scale=3, model="scripted"), job_id)
        for pixels, same in ((picture(), True), (picture(seed=1), False)):
            body = {"image": {"data": base64.b64encode(pixels).decode()}, "seed": 7, "reuse": True}
            assert is_reused(await app.client.post("/generate/image-to-video", json=body), job_id) == same
        upload = await app.client.post("/uploads", files={"file": ("still.png", picture())})
        body = {"image": {"upload": upload.json()["id"]}, "seed": 7, "reuse": True}
        assert is_reused(await app.client.post("/generate/image-to-video", json=body), job_id)


async def test_no_seed_reuses_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job_id = await finished_job(app)
        answer = await app.post(reuse=True)
        assert not is_reused(answer, job_id)
        drawn = answer.json()["seed"]
        await app.until(answer.json()["id"], "completed")
        assert is_reused(await app.post(reuse=True, seed=drawn), answer.json()["id"]), "a drawn seed may be named later"


async def test_only_completed_jobs_whose_video_is_there(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        job = await app.submit(seed=7)
        assert not is_reused(await app.post(seed=7, reuse=True), job.id), "it has not ended"
        app.engine.gate.set()
        await app.until(job.id, "completed")
        for other in (await app.client.get("/jobs")).json()["data"]:
            await app.until(other["id"], "completed")
            (tmp_path / "artifacts" / other["id"] / "video.mp4").unlink()
        assert not is_reused(await app.post(seed=7, reuse=True), job.id), "the files are lost"


async def test_a_degraded_video_and_one_of_an_older_row_are_made_again(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job_id = await finished_job(app)
        output = (await app.client.get(f"/jobs/{job_id}")).json()["output"]
        for values in ({"output": {**output, "degraded": True}}, {"output": output, "identity": None}):
            with app.services.database.write() as session:
                session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))
            answer = await app.post(seed=7, reuse=True)
            assert not is_reused(answer, job_id)
            await app.until(answer.json()["id"], "completed")
            assert (await app.client.delete(f"/jobs/{answer.json()['id']}")).status_code == 204


async def test_another_key_s_job_is_none(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        mine, theirs = make(app, "mine"), make(app, "theirs")
        job_id = await finished_job(app, headers=mine)
        assert not is_reused(await app.post(headers=theirs, seed=7, reuse=True), job_id)
        assert is_reused(await app.post(headers=mine, seed=7, reuse=True), job_id)


async def test_a_full_queue_and_quota_do_not_matter(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(), queue_limit=1) as app:
        few = make(app, "few", max_jobs=1)
        job_id = await finished_job(app, headers=few)
        app.engine.gated = True
        await app.submit(headers=few)
        assert is_reused(await app.post(headers=few, seed=7, reuse=True), job_id)
        refused = await app.post(headers=few, seed=8, reuse=True)
        assert (refused.status_code, error_of(refused).code) == (429, "quota_full")
        app.engine.gate.set()


async def test_an_idempotency_key_stands_for_the_reused_job(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job_id = await finished_job(app)
        headers = {"Idempotency-Key": "once"}
        assert is_reused(await app.post(headers=headers, seed=7, reuse=True), job_id)
        again = await app.post(headers=headers, seed=7, reuse=True)
        assert (again.json()["id"], again.headers["idempotent-replayed"]) == (job_id, "true")
        assert "job-reused" not in again.headers
        other = await app.post(headers=headers, seed=8, reuse=True)
        assert (other.status_code, error_of(other).code) == (409, "idempotency_mismatch")
        other = await app.post(headers=headers, seed=8)
        assert (other.status_code, error_of(other).code) == (409, "idempotency_mismatch")


async def test_it_stays_as_long_as_if_it_had_ended_now_and_the_webhook_is_told(tmp_path: Path) -> None:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    async with server, running(tmp_path, webhook_http=True, webhook_allow="127.0.0.0/8") as app:
        job_id = await finished_job(app)
        with app.services.database.write() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(expires_at=JobRow.completed_at + 60))
        answer = await app.post(seed=7, reuse=True, webhook=json.dumps({"url": url, "secret": SECRET}))
        assert is_reused(answer, job_id)
        assert answer.json()["expires_at"] > answer.json()["completed_at"] + 86_400
        while not receiver.seen:
            await asyncio.sleep(0.02)
        message = verify(receiver.seen[0][1], receiver.seen[0][0], SECRET)
        assert (message.type, message.data.id) == ("job.completed", job_id)


async def test_rows_of_batches_have_no_reuse(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        body = {"image": {"data": base64.b64encode(picture()).decode()}, "seed": 7, "reuse": True}
        line = json.dumps({"custom_id": "a", "url": "/generate/image-to-video", "body": body})
        refused = await app.client.post("/batches", content=line, headers={"Content-Type": "application/jsonl"})
        assert (refused.status_code, error_of(refused).param) == (422, "line 1: reuse")


PICTURE = hashlib.sha256(b"picture").digest()


def test_the_identity_is_of_what_the_video_depends_on() -> None:
    new = replace(new_job("a"), params={"fps": 7, "scale": 3.0, "extend": {"model_version": "1"}})
    first = clip_identity(new, [PICTURE])
    assert first == clip_identity(replace(new, id="b", owner="x", metadata={"a": "b"}, priority="high"), [PICTURE])
    assert first == clip_identity(replace(new, params={**new.params, "scale": 3}), [PICTURE])
    for other in (
        replace(new, task="multi-view"),
        replace(new, model_version="2"),
        replace(new, params={**new.params, "scale": 3.5}),
        replace(new, params={**new.params, "extend": {"model_version": "2"}}),
    ):
        assert clip_identity(other, [PICTURE]) != first
    assert clip_identity(new, [PICTURE, PICTURE]) != first != clip_identity(new, [])

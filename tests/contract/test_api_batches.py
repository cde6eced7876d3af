"""POST /batches: many generations in, all of them or none, and their results out."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from stillmotion.types import Batch, BatchResult

from tests.contract.support import Running, error_of, picture, running
from tests.support.fakes import ScriptedEngine


def line(custom_id: str, url: str = "/generate/image-to-video", **body: Any) -> dict[str, Any]:
    image = {"data": base64.b64encode(picture()).decode()}
    return {"custom_id": custom_id, "url": url, "body": {"image": image, **body}}


async def post(app: Running, lines: list[Any], **headers: str) -> httpx2.Response:
    content = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    return await app.client.post("/batches", content=content, headers={"Content-Type": "application/jsonl", **headers})


async def until_completed(app: Running, batch: Batch) -> Batch:
    while batch.status != "completed":
        await asyncio.sleep(0.02)
        batch = Batch.model_validate((await app.client.get(batch.urls.self)).json())
    return batch


async def results(app: Running, batch: Batch) -> list[BatchResult]:
    answer = await app.client.get(batch.urls.results)
    assert answer.headers["content-type"].startswith("application/jsonl")
    return [BatchResult.model_validate_json(text) for text in answer.text.splitlines()]


async def test_rows_become_jobs_and_results(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        answer = await post(app, [line(f"row {number}", seed=number, fps=10 + number) for number in range(3)])
        assert answer.status_code == 202
        batch = await until_completed(app, Batch.model_validate(answer.json()))
        assert (batch.total, batch.counts.completed) == (3, 3)
        rows = await results(app, batch)
        assert [(row.row, row.custom_id, row.job.seed) for row in rows] == [(n, f"row {n}", n) for n in range(3)]
        assert [row.job.params["fps"] for row in rows] == [10, 11, 12]
        assert {request.share.priority for request in app.engine.requests} == {"offline"}
        content = await app.client.get(rows[0].job.urls.content)
        assert content.status_code == 200


async def test_results_come_while_it_runs_and_others_go_first(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        batch = Batch.model_validate((await post(app, [line("a"), line("b")])).json())
        assert await results(app, batch) == []
        urgent = await app.submit(priority="low")
        assert urgent.queue_position == 0
        app.engine.gate.set()
        await until_completed(app, batch)
        order = [request.job_id for request in app.engine.requests]
        assert order.index(urgent.id) < 2  # behind the row that ran already, before the one that waited


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (line("b", fps=1000), "line 2: fps"),
        (line("b", nonsense=1), "line 2: nonsense"),
        (line("b", priority="high"), "line 2: priority"),
        (line("b", num_frames=1001), "line 2: num_frames"),
        (line("a"), "line 2: custom_id"),
        (line("b", url="/generate/lunch"), "line 2: url"),
        ({"custom_id": "b", "url": "/generate/image-to-video", "body": {}}, "line 2: image"),
        ({**line("b"), "more": 1}, "line 2: more"),
        ({**line("b"), "body": {"image": {"data": "bm90IGEgcGljdHVyZQ=="}}}, "line 2: image"),
        (line("b", url="/generate/multi-view"), "line 2: model"),
        ("no json", "line 2"),
        ("[]", "line 2"),
    ],
)
async def test_one_bad_line_refuses_the_batch_and_keeps_nothing(tmp_path: Path, bad: Any, param: str) -> None:
    async with running(tmp_path) as app:
        refused = await post(app, [line("a"), bad])
        assert refused.status_code == 422, refused.text
        assert error_of(refused).param == param
        assert error_of(refused).message.startswith("line 2")
        assert await app.stored() == (0, [])


async def test_what_is_no_batch_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, batch_rows=2, offline_limit=3) as app:
        assert (await post(app, [])).status_code == 422
        wrong_kind = await app.client.post("/batches", json=line("a"))
        assert wrong_kind.status_code == 415
        assert (await post(app, [line(str(n)) for n in range(3)])).status_code == 413
        async with running(tmp_path, ScriptedEngine(start_failure=RuntimeError("no device"))) as broken:
            assert (await post(broken, [line("a")])).status_code == 503


async def test_the_waiting_rows_are_limited(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(warm=asyncio.Event()), offline_limit=3) as app:
        assert (await post(app, [line("a"), line("b")])).status_code == 202
        refused = await post(app, [line("a"), line("b")])
        assert (refused.status_code, error_of(refused).code) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await app.stored())[0] == 2


async def test_an_idempotency_key_makes_one_batch(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        first, again = [await post(app, [line("a", seed=1)], **{"Idempotency-Key": "k"}) for _ in range(2)]
        assert first.json()["id"] == again.json()["id"]
        other = await post(app, [line("a", seed=2)], **{"Idempotency-Key": "k"})
        assert (other.status_code, error_of(other).code) == (409, "idempotency_mismatch")
        submitted = await app.post(headers={"Idempotency-Key": "k"})
        assert submitted.status_code == 409
        assert (await app.stored())[0] == 1


async def test_cancel_stops_every_row(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        batch = Batch.model_validate((await post(app, [line(name) for name in "abc"])).json())
        while not app.engine.requests:
            await asyncio.sleep(0.01)
        headers = {"Idempotency-Key": "stop"}
        for _ in range(2):
            assert (await app.client.post(batch.urls.cancel, headers=headers)).status_code == 200
        done = await until_completed(app, batch)
        assert done.counts.cancelled == 3
        job = await app.submit()
        refused = await app.client.post(job.urls.cancel, headers=headers)
        assert refused.status_code == 409
        app.engine.gate.set()


async def test_an_unknown_batch_is_404(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel")):
            answer = await app.client.request(method, f"/batches/batch_none{path}")
            assert (answer.status_code, error_of(answer).code) == (404, "batch_not_found")

"""API keys: who has none is let in nowhere, and what one key made does not exist for another, on any route."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import httpx2
import pytest
from stillmotion.types import KeyList

from serving.keys import KeyStore, Token
from serving.observe.logs import configure
from tests.contract.support import Running, error_of, picture, running
from tests.support.fakes import ScriptedEngine

WEBHOOK_SECRET = "whsec_c2VjcmV0IG9mIHRoZSB3ZWJob29rIQ=="
OPEN = {"/health", "/health/live", "/health/ready"}
"""Routes that need no key."""


def bearer(token: Token) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def make(app: Running, name: str, **limits: Any) -> dict[str, str]:
    """A new key, as the header that carries it."""
    return bearer(KeyStore(app.services.database).create(name, **limits)[1])


async def operations(app: Running) -> list[tuple[str, str]]:
    document = (await app.client.get("/openapi.json")).json()
    found = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    assert len(found) > 20
    return found


async def test_every_route_wants_a_key_once_there_is_one(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        assert (await app.client.get("/jobs")).status_code == 200, "no keys: nobody needs one"
        make(app, "first")
        app.services.keys._read_at = -1e9
        for method, path in await operations(app):
            answer = await app.client.request(method, path.replace("{", "").replace("}", ""))
            if path in OPEN:
                assert answer.status_code in (200, 503), path
                continue
            assert (answer.status_code, error_of(answer).code) == (401, "unauthenticated"), (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer nonsense", "Basic dTpw", "Bearer sm_00_11", "é"])
async def test_what_is_no_key_is_refused(tmp_path: Path, header: str) -> None:
    async with running(tmp_path) as app:
        make(app, "first")
        answer = await app.client.get("/jobs", headers={"Authorization": header.encode("latin-1")})
        assert answer.status_code == 401


async def test_one_key_never_meets_anothers_work(tmp_path: Path) -> None:
    """Every operation of the OpenAPI document that names a job, a video or a batch, with the other key."""
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        mine, theirs = make(app, "mine"), make(app, "theirs")
        job = await app.submit(headers=mine)
        line = {"custom_id": "a", "url": "/generate/image-to-video", "body": {"image": {"data": "AAAA"}}}
        ids = {"job_id": job.id, "video_id": job.id, "batch_id": await batch(app, mine, line), "delivery_id": "none"}
        ids["upload_id"] = (await app.client.post("/uploads", content=picture(), headers=mine)).json()["id"]
        named = [(method, path) for method, path in await operations(app) if "{" in path and "model_id" not in path]
        assert {"/jobs/{job_id}", "/jobs/{job_id}/content", "/v1/videos/{video_id}"} <= {path for _, path in named}
        for method, path in named:
            answer = await app.client.request(method, path.format(**ids), headers=theirs)
            assert answer.status_code == 404, (method, path, answer.text)
            absent = {name: f"{value[:4]}{'0' * (len(value) - 4)}" for name, value in ids.items()}
            nothing = await app.client.request(method, path.format(**absent), headers=theirs)
            assert plain(answer, ids) == plain(nothing, absent), "as if there were none, in the same words"
            if method == "GET":  # HEAD goes with it, and is in no OpenAPI document
                head = await app.client.head(path.format(**ids), headers=theirs)
                assert head.status_code in (404, 405), path
        for method, path in await operations(app):
            if method == "GET" and "{" not in path:
                told = (await app.client.get(path, headers=theirs)).text
                assert not [value for value in ids.values() if value in told], path
        for path in ("/jobs", "/v1/videos"):
            assert (await app.client.get(path, headers=theirs)).json()["data"] == []
            assert job.id in [found["id"] for found in (await app.client.get(path, headers=mine)).json()["data"]]
            answer = await app.client.get(path, headers=theirs, params={"after": job.id})
            assert answer.status_code == 404
        for upload in (ids["upload_id"], absent["upload_id"]):
            answer = await app.client.post(
                "/generate/image-to-video", json={"image": {"upload": f"upload_{upload[7:]:0<64}"}}, headers=theirs
            )
            assert (answer.status_code, error_of(answer).code) == (404, "upload_not_found")
        assert app.engine.cancelled == set()
        assert (await app.client.get(job.urls.self, headers=mine)).json()["status"] in ("queued", "in_progress")
        assert (await app.client.post(job.urls.cancel, headers=mine)).status_code == 200


async def batch(app: Running, mine: dict[str, str], line: dict[str, Any]) -> str:
    import base64
    import json

    line["body"]["image"]["data"] = base64.b64encode(picture()).decode()
    headers = {**mine, "Content-Type": "application/jsonl"}
    answer = await app.client.post("/batches", content=json.dumps(line).encode(), headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def plain(answer: httpx2.Response, ids: dict[str, str]) -> tuple[int, str]:
    """Status and body without the ids in it."""
    text = answer.text.replace(answer.headers["x-request-id"], "")
    for value in ids.values():
        text = text.replace(value, "ID")
    return answer.status_code, text


async def test_two_keys_may_use_the_same_idempotency_key(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        first, second = make(app, "first"), make(app, "second")
        again = {"Idempotency-Key": "same"}
        jobs = [await app.submit(headers={**headers, **again}, seed=1) for headers in (first, second, first)]
        assert jobs[0].id == jobs[2].id != jobs[1].id


async def test_the_engine_hears_whose_work_it_is(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        heavy = make(app, "heavy", weight=3.5)
        job = await app.submit(headers=heavy, priority="high", deadline_s=900)
        while not app.engine.requests:
            await app.client.get(job.urls.self, headers=heavy)
        share = app.engine.requests[0].share
        assert (share.weight, share.priority, share.deadline_s) == (3.5, "high", 900)
        assert share.tenant == heavy["Authorization"].split("_")[1]


async def test_rate_and_quota_answer_429_with_when_to_come_again(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True, estimate_s=30.0)) as app:
        few, slow = make(app, "few", max_jobs=1), make(app, "slow", per_minute=2)
        await app.submit(headers=few)
        answer = await app.post(headers=few)
        assert (answer.status_code, error_of(answer).code) == (429, "quota_full")
        assert int(answer.headers["retry-after"]) >= 1
        for _ in range(2):
            await app.submit(headers=slow)
        answer = await app.post(headers=slow)
        assert (answer.status_code, error_of(answer).code) == (429, "rate_limited")
        assert 20 <= int(answer.headers["retry-after"]) <= 30
        assert (await app.client.get("/jobs", headers=slow)).status_code == 200, "looking is not limited"


async def test_the_rows_of_a_batch_count_against_rate_and_quota(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        few, slow = make(app, "few", max_jobs=2), make(app, "slow", per_minute=6)
        refused = await rows(app, few, 3)
        assert (refused.status_code, error_of(refused).code) == (429, "quota_full")
        assert (await rows(app, few, 2)).status_code == 202
        refused = await app.post(headers=few)
        assert (refused.status_code, error_of(refused).code) == (429, "quota_full"), "waiting rows are jobs too"
        assert (await rows(app, slow, 8)).status_code == 202, "more than a minute's worth at once: owed"
        refused = await app.post(headers=slow)
        assert (refused.status_code, error_of(refused).code) == (429, "rate_limited")
        assert 25 <= int(refused.headers["retry-after"]) <= 30, "two are owed and one is wanted, ten seconds each"


async def rows(app: Running, mine: dict[str, str], count: int) -> httpx2.Response:
    import base64
    import json

    body = {"image": {"data": base64.b64encode(picture()).decode()}}
    lines = [{"custom_id": str(number), "url": "/generate/image-to-video", "body": body} for number in range(count)]
    content = "\n".join(map(json.dumps, lines)).encode()
    return await app.client.post("/batches", content=content, headers={**mine, "Content-Type": "application/jsonl"})


async def test_only_an_operators_key_reads_metrics(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        assert (await app.client.get("/metrics")).status_code == 200
        plain_key, operator = make(app, "plain"), make(app, "operator", operator=True)
        app.services.keys._read_at = -1e9
        answer = await app.client.get("/metrics", headers=plain_key)
        assert (answer.status_code, error_of(answer).code) == (403, "not_operator")
        assert (await app.client.get("/metrics", headers=operator)).status_code == 200


async def test_only_an_operators_key_lists_the_keys_and_no_secret_is_in_it(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        assert (await app.client.get("/keys")).json() == {"object": "list", "data": []}
        first, operator = make(app, "first", per_minute=6), make(app, "operator", operator=True)
        app.services.keys._read_at = -1e9
        answer = await app.client.get("/keys", headers=first)
        assert (answer.status_code, error_of(answer).code) == (403, "not_operator")
        answer = await app.client.get("/keys", headers=operator)
        listed = KeyList.model_validate(answer.json()).data
        assert {(key.name, key.per_minute, key.operator) for key in listed} == {
            ("first", 6, False),
            ("operator", None, True),
        }
        for header in (first, operator):
            assert header["Authorization"].split("_")[-1] not in answer.text


async def test_no_secret_is_ever_logged(tmp_path: Path) -> None:
    """Everything at every level, also where a request fails badly."""
    lines = io.StringIO()
    handler = configure(json_lines=True, stream=lines)
    handler.addFilter(lambda record: not record.name.startswith("httpx"))  # the test's own client
    root, before = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.DEBUG)
    try:
        async with running(tmp_path, ScriptedEngine(ending=RuntimeError("boom"))) as app:
            token = KeyStore(app.services.database).create("k", operator=True)[1]
            hook = f'{{"url": "https://hook.example/x", "secret": "{WEBHOOK_SECRET}"}}'
            job = await app.submit(headers=bearer(token), webhook=hook)
            while not (await app.client.get(job.urls.self, headers=bearer(token))).json()["error"]:
                pass
            wrong = Token(token.key_id, "f" * 64)
            for headers in (bearer(wrong), bearer(token), {"Authorization": f"Basic {token.secret}"}):
                await app.client.get(f"/jobs/{job.id}?secret={token.secret}", headers=headers)
            await app.client.get("/metrics", headers=bearer(token))
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    logged = lines.getvalue()
    assert "boom" in logged
    assert "/jobs/{job_id}" in logged
    assert token.secret not in logged
    assert "f" * 64 not in logged
    assert WEBHOOK_SECRET not in logged

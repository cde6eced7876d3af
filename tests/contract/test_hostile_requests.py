"""Requests that mean no good, or are merely odd: what each may cost is bounded, and every answer has our shape."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from serving.gateway.openai_schema import PROMPT_KEY
from serving.jobs.admission import queue_share
from serving.jobs.store import JobStore
from serving.keys import KeyStore
from tests.contract.support import ScriptedEngine, error_of, picture, running

URL = "/generate/image-to-video"


@pytest.mark.parametrize(
    "metadata",
    [
        {"k" * 65: "v"},
        {"": "v"},
        {"k": "v" * 513},
        {f"k{number}": "v" for number in range(17)},
        {"k": {"a": {"b": 1}}},
    ],
    ids=["long key", "no key", "long value", "many", "deep"],
)
async def test_metadata_is_bounded_whole(tmp_path: Path, metadata: dict[str, object]) -> None:
    async with running(tmp_path) as app:
        form = await app.post(metadata=json.dumps(metadata))
        image = {"data": base64.b64encode(picture()).decode()}
        body = await app.client.post(URL, json={"image": image, "metadata": metadata})
        for answer in (form, body):
            assert answer.status_code == 422, answer.text
            assert (error_of(answer).param or "").startswith("metadata")
        assert await app.stored() == (0, [])


async def test_the_most_that_metadata_may_hold_costs_little(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        most = {f"{number:02}" + "k" * 62: "v" * 512 for number in range(16)}
        job = await app.until((await app.submit(metadata=json.dumps(most))).id, "completed")
        assert job.metadata == most
        size = sum(path.stat().st_size for path in tmp_path.glob("jobs.db*"))
        assert size < 1_500_000


async def test_a_prompt_that_is_only_recorded_is_cut(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        answer = await app.client.post(
            "/v1/videos", data={"prompt": "p" * 32_000}, files={"input_reference": ("x.png", picture(), "image/png")}
        )
        assert answer.status_code == 200, answer.text
        job = await app.until(answer.json()["id"], "completed")
        assert job.metadata[PROMPT_KEY] == "p" * 2000


async def test_a_500_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as app:

        def broken(*_: object) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(JobStore, "get", broken)
        answer = await app.client.get("/jobs/job_1")
        assert (answer.status_code, error_of(answer).code) == (500, "internal_error")
        text = (await app.client.get("/metrics")).text
        counted = [line for line in text.splitlines() if 'status="500"' in line and 'route="/jobs/{job_id}"' in line]
        assert counted
        assert counted[0].endswith(" 1.0")


@pytest.mark.parametrize("last", [2**63, 2**64, 10**30])
async def test_a_last_event_id_beyond_64_bits_is_refused(tmp_path: Path, last: int) -> None:
    async with running(tmp_path) as app:
        job = await app.until((await app.submit()).id, "completed")
        answer = await app.client.get(job.urls.events, headers={"Last-Event-ID": str(last)})
        assert (answer.status_code, error_of(answer).code) == (422, "out_of_range")


async def test_an_empty_last_event_id_means_none(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job = await app.until((await app.submit()).id, "completed")
        whole = (await app.client.get(job.urls.events)).text
        assert (await app.client.get(job.urls.events, headers={"Last-Event-ID": ""})).text == whole
        largest = await app.client.get(job.urls.events, headers={"Last-Event-ID": str(2**63 - 1)})
        assert (largest.status_code, largest.text) == (200, "")


async def test_head_wherever_get_is(tmp_path: Path) -> None:
    engine = ScriptedEngine(gated=True)
    async with running(tmp_path, engine) as app:
        engine.gate.set()
        job = await app.until((await app.submit()).id, "completed")
        paths = ["/", "/docs", "/openapi.json", "/health/live", "/health/ready", "/models", "/metrics", "/jobs"]
        paths += [job.urls.self, job.urls.events, job.urls.content, f"{job.urls.content}?variant=thumbnail"]
        paths += ["/v1/models", "/v1/videos", f"/v1/videos/{job.id}", f"/v1/videos/{job.id}/content", "/nothing"]
        for path in paths:
            get, head = await app.client.get(path), await app.client.head(path)
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert head.headers.get("content-type") == get.headers.get("content-type"), path
            if path not in ("/metrics",):
                assert head.headers.get("content-length") == get.headers.get("content-length"), path
        engine.gate.clear()
        waiting = await app.submit()
        async with asyncio.timeout(5):  # a stream that would not end
            assert (await app.client.head(waiting.urls.events)).status_code == 200
        assert (await app.client.head("/generate/image-to-video")).status_code == 405
        text = (await app.client.get("/metrics")).text
        assert 'method="HEAD",route="/jobs/{job_id}/content"' in text


@pytest.mark.parametrize("scheme", ["data:image/png;base64,", "DATA:image/png;base64,", "Data:image/png;BASE64,"])
async def test_the_scheme_of_a_data_url_has_no_case(tmp_path: Path, scheme: str) -> None:
    async with running(tmp_path) as app:
        url = scheme + base64.b64encode(picture()).decode()
        answer = await app.client.post("/v1/videos", json={"prompt": "x", "input_reference": {"image_url": url}})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("steps", "num_inference_steps"), ("frames", "num_frames"), ("num_frame", "num_frames"), ("zzz", None)],
)
async def test_an_unknown_field_is_answered_with_the_one_meant(tmp_path: Path, wrong: str, meant: str | None) -> None:
    async with running(tmp_path) as app:
        answer = await app.post(**{wrong: 5})
        error = error_of(answer)
        assert (answer.status_code, error.param) == (422, wrong)
        assert error.message.endswith("leave it out" if meant is None else f"did you mean {meant}?")


async def test_a_batch_may_be_larger_than_another_body(tmp_path: Path) -> None:
    line = json.dumps({"custom_id": "a", "url": URL, "body": {"image": {"data": "x" * 3_000_000}}}).encode()
    headers = {"Content-Type": "application/jsonl"}
    async with running(tmp_path, max_body_bytes=2_000_000, max_batch_bytes=4_000_000) as app:
        assert (await app.client.post("/batches", content=line, headers=headers)).status_code == 422
        assert (await app.client.post("/batches", content=line * 2, headers=headers)).status_code == 413
        assert (await app.client.post(URL, content=line, headers=headers)).status_code == 413


async def test_one_keys_flood_refuses_nobody_else(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True), queue_limit=20) as app:
        keys = KeyStore(app.services.database)
        tokens = {
            name: str(keys.create(name, weight=weight)[1])
            for name, weight in (("flood", 1.0), ("calm", 1.0), ("heavy", 3.0))
        }
        app.services.keys._read_at = float("-inf")

        async def submitted(name: str, count: int) -> list[int]:
            headers = {"Authorization": f"Bearer {tokens[name]}"}
            return [(await app.post(headers=headers, seed=number)).status_code for number in range(count)]

        flood = await submitted("flood", 30)
        assert 20 <= flood.count(202) <= 22  # one or two run
        calm = await submitted("calm", 15)
        assert calm == [202] * 10 + [429] * 5
        assert await submitted("flood", 3) == [429] * 3
        assert (await submitted("heavy", 14)).count(202) == 12, "20 * 3 / 5"


def test_shares_follow_weights() -> None:
    assert queue_share(100, "a", 1.0, {}) == 100
    assert queue_share(100, "a", 1.0, {"a": 1.0, "b": 1.0}) == 50
    assert queue_share(100, "a", 3.0, {"b": 1.0}) == 75
    assert queue_share(100, "a", 0.001, {"b": 1000.0}) == 1
    for owners in range(1, 30):
        weights = {str(number): 1.0 + number for number in range(owners)}
        assert sum(queue_share(100, name, weight, weights) for name, weight in weights.items()) <= 100 + owners


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_keys_that_come_one_after_the_other_never_fill_more_than_three_queues(limit: int) -> None:
    waiting: dict[str, int] = {}
    for number in range(500):
        key, others = str(number), sum(waiting.values())
        share = queue_share(limit, key, 1.0, dict.fromkeys(waiting, 1.0), others) if others >= limit else limit - others
        if share:
            waiting[key] = share
        assert sum(waiting.values()) <= 3 * limit
    assert sum(waiting.values()) == 3 * limit
    if limit == 100:
        assert waiting["1"] == 50 and waiting["2"] == 33  # three keys, and some more, have their whole share


async def test_a_locked_database_is_503_with_retry_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.gateway import services
    from serving.jobs.database import Database

    monkeypatch.setattr(services, "Database", lambda url: Database(url, busy_timeout_s=0.3))
    async with running(tmp_path) as app:
        blocker = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None, check_same_thread=False)
        blocker.execute("BEGIN IMMEDIATE")
        answers = await asyncio.gather(*(app.post(seed=number) for number in range(8)))
        assert {answer.status_code for answer in answers} == {503}
        for answer in answers:
            assert (error_of(answer).code, error_of(answer).type) == ("database_busy", "unavailable")
            assert int(answer.headers["retry-after"]) > 0
        assert (await app.client.get("/jobs")).status_code == 200, "reading goes on"
        blocker.execute("ROLLBACK")
        blocker.close()
        assert await app.stored() == (0, [])
        assert (await app.until((await app.submit()).id, "completed")).status == "completed"


@pytest.mark.slow
def test_a_large_picture_gives_its_memory_back(root: Path, tmp_path: Path) -> None:
    """24 megapixels of RGBA: at most 10 bytes a pixel while it is decoded, and next to nothing afterwards.

    In a process of its own: what other tests left running in this one would be counted too.
    """
    call = f"from {__name__} import memory_of_large_pictures as measured; measured({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", call], cwd=root, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["peak"] < 10 * 24_000_000 + 32 * 2**20
    assert measured["kept"] < 48 * 2**20


def memory_of_large_pictures(folder: str) -> None:
    """Print the bytes that this process holds beyond a first picture's, at most and afterwards, as JSON."""
    buffer = io.BytesIO()
    Image.new("RGBA", (6000, 4000), (10, 20, 30, 128)).save(buffer, "PNG", compress_level=1)
    files = {"image": ("x.png", buffer.getvalue(), "image/png")}
    process = psutil.Process()

    async def submit_three() -> dict[str, int]:
        # One thread decodes: of each thread's arena glibc keeps the top (28 MiB here), once, and trims it never.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        async with running(Path(folder), ScriptedEngine(gated=True)) as app:
            assert (await app.client.post(URL, files=files)).status_code == 202
            before = process.memory_info().rss
            peak, done = before, False

            async def watch() -> None:
                nonlocal peak
                while not done:
                    peak = max(peak, process.memory_info().rss)
                    await asyncio.sleep(0.005)

            watching = asyncio.create_task(watch())
            for _ in range(3):
                assert (await app.client.post(URL, files=files)).status_code == 202
            done = True
            await watching
            for _ in range(200):  # a decoder's thread lets go of its last picture a moment after the answer
                if process.memory_info().rss - before < 16 * 2**20:
                    break
                await asyncio.sleep(0.05)
            return {"peak": peak - before, "kept": process.memory_info().rss - before}

    print(json.dumps(asyncio.run(submit_three())))

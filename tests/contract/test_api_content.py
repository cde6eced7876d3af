"""GET and HEAD of a job's content: variants, ranges, validators. The bytes are compared with plain slicing."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from tests.contract.support import error_of, finished, listening, running
from tests.support.fakes import ScriptedEngine


async def test_each_variant_is_what_the_engine_made(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job = await app.until((await app.submit(seed=3)).id, "completed")
        result = ScriptedEngine.result(app.engine.requests[0])
        expected = {
            "video": (finished(app.engine.requests[0]).video, "video/mp4"),
            "thumbnail": (result.thumbnail, "image/jpeg"),
            "frames": (result.frames, "image/png"),
        }
        for variant, (data, kind) in expected.items():
            answer = await app.client.get(job.urls.content, params={"variant": variant})
            assert (answer.status_code, answer.content) == (200, data)
            assert answer.headers["content-type"] == kind
            assert answer.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
        default = await app.client.get(job.urls.content)
        assert default.content == finished(app.engine.requests[0]).video
        assert job.output is not None
        assert (job.output.sha256, job.output.bytes) == (
            hashlib.sha256(default.content).hexdigest(),
            len(default.content),
        )
        manifest = await app.client.get(job.urls.content, params={"variant": "manifest"})
        told = json.loads(manifest.content)
        assert told == finished(app.engine.requests[0]).manifest
        assert (told["model"], told["seed"]) == ("scripted", 3)


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, 3000),
        ("bytes=-100", 2900, 3000),
        ("bytes=-9999", 0, 3000),
        ("bytes=2990-5000", 2990, 3000),
        ("bytes=2999-2999", 2999, 3000),
    ],
)
async def test_ranges_over_a_socket(tmp_path: Path, header: str, start: int, stop: int) -> None:
    async with listening(tmp_path) as app:
        job = await app.until((await app.submit(output_format="webm")).id, "completed")
        video = ScriptedEngine.result(app.engine.requests[0]).video
        answer = await app.client.get(job.urls.content, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, video[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/3000"
        assert answer.headers["content-length"] == str(stop - start)
        head = await app.client.head(job.urls.content, headers={"Range": header})
        assert (head.status_code, head.content) == (206, b"")
        assert head.headers["content-length"] == str(stop - start)


async def test_whole_answers_and_refusals(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job = await app.until((await app.submit(output_format="webm")).id, "completed")
        url = job.urls.content
        whole = await app.client.get(url)
        assert (whole.headers["accept-ranges"], whole.headers["content-length"]) == ("bytes", "3000")
        for header in ("bytes=0-1,5-6", "lines=0-1", "bytes=9-3", "bytes=", "bytes=-"):
            assert (await app.client.get(url, headers={"Range": header})).status_code == 200
        for header in ("bytes=3000-", "bytes=9999-10000", "bytes=-0"):
            answer = await app.client.get(url, headers={"Range": header})
            assert (answer.status_code, error_of(answer).param) == (416, "Range")
            assert answer.headers["content-range"] == "bytes */3000"
        head = await app.client.head(url)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "3000")
        etag = whole.headers["etag"]
        for tags in (etag, f'"other", W/{etag}', "*"):
            unchanged = await app.client.get(url, headers={"If-None-Match": tags})
            assert (unchanged.status_code, unchanged.content) == (304, b"")
        same = await app.client.get(url, headers={"Range": "bytes=0-9", "If-Range": etag})
        changed = await app.client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
        assert (same.status_code, changed.status_code) == (206, 200)
        answer = await app.client.get(url, params={"variant": "audio"})
        assert (answer.status_code, error_of(answer).param) == (422, "variant")


async def test_content_is_409_until_it_is_there(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        job = await app.submit()
        for variant in ("video", "thumbnail", "frames", "manifest"):
            answer = await app.client.get(job.urls.content, params={"variant": variant})
            assert (answer.status_code, error_of(answer).code) == (409, "content_not_ready")
        app.engine.gate.set()
        await app.until(job.id, "completed")
        (app.folder / "artifacts" / job.id / "video.mp4").unlink()
        lost = await app.client.get(job.urls.content)
        assert (lost.status_code, error_of(lost).code) == (500, "artifact_lost")


async def test_a_reader_that_leaves_harms_nobody(tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        job = await app.until((await app.submit()).id, "completed")
        host, port = app.address.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {job.urls.content} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await app.client.get(job.urls.content)).status_code == 200

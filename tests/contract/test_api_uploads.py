"""POST /uploads: pictures sent apart from requests, private to their key, named wherever a picture is taken."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from stillmotion import AsyncClient, batch_line
from stillmotion.types import Batch, Job, Upload

from serving.gateway import create_app
from serving.gateway.routes import uploads as route
from serving.jobs.artifacts import IncomingFile
from tests.contract.support import Running, error_of, picture, running, settings
from tests.contract.test_keys import make
from tests.contract.test_large_uploads import padded_jpeg
from tests.support.fakes import ScriptedEngine, model_entry

TO_VIDEO = "/generate/image-to-video"


async def upload(app: Running, data: bytes, **headers: str) -> Upload:
    answer = await app.client.post("/uploads", content=data, headers=headers)
    assert answer.status_code in (200, 201), answer.text
    return Upload.model_validate(answer.json())


def files(app: Running) -> list[str]:
    """What lies in the store for uploads."""
    folder = app.folder / "artifacts" / "uploads"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


async def test_an_upload_is_its_content_and_can_be_looked_at_and_removed(tmp_path: Path) -> None:
    data = picture()
    async with running(tmp_path) as app:
        first = await app.client.post("/uploads", content=data)
        again = await app.client.post("/uploads", files={"file": ("still.png", data, "image/png")})
        assert (first.status_code, again.status_code) == (201, 200)
        stored = Upload.model_validate(again.json())
        assert stored.id == first.json()["id"] == f"upload_{hashlib.sha256(data).hexdigest()}"
        assert (stored.bytes, stored.status) == (len(data), "stored")
        assert stored.expires_at > first.json()["expires_at"] - 1
        assert len(files(app)) == 1, "the same bytes lie there once"
        assert (await app.client.get(f"/uploads/{stored.id}")).json() == again.json()
        assert (await app.client.delete(f"/uploads/{stored.id}")).status_code == 204
        assert files(app) == []
        for method in ("GET", "DELETE"):
            gone = await app.client.request(method, f"/uploads/{stored.id}")
            assert (gone.status_code, error_of(gone).code) == (404, "upload_not_found")


async def test_every_way_to_name_one_makes_the_same_video(tmp_path: Path) -> None:
    data = picture()
    async with running(tmp_path) as app:
        named = await upload(app, data)
        as_json = await app.client.post(TO_VIDEO, json={"image": {"upload": named.id}, "seed": 1})
        as_form = await app.client.post(TO_VIDEO, data={"image": named.id, "seed": "1"}, files={})
        assert as_form.status_code == 415, "httpx sends that URL-encoded"
        as_form = await app.client.post(TO_VIDEO, files={"image": (None, named.id), "seed": (None, "1")})
        for reference in ({"file_id": named.id}, named.id):
            body = {"prompt": "x", "input_reference": reference, "seed": 1}
            answer = await app.client.post("/v1/videos", json=body)
            assert answer.status_code == 200, answer.text
        assert [as_json.status_code, as_form.status_code] == [202, 202], as_form.text
        direct = await app.submit(seed=1)
        await app.until(direct.id, "completed")
        for job in (await app.client.get("/jobs")).json()["data"]:
            await app.until(job["id"], "completed")
        assert len({request.images for request in app.engine.requests}) == 1
        assert len(app.engine.requests) == 5


async def test_both_ends_of_a_clip_may_be_uploads_and_the_sdk_names_them(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    app = create_app(engine, [model_entry("frame-interpolation"), model_entry()], settings(tmp_path))
    transport = httpx2.ASGITransport(app)
    async with app.router.lifespan_context(app), AsyncClient("http://test", transport=transport) as client:
        first, last = [await client.upload(picture(seed=seed)) for seed in (1, 2)]
        assert await client.upload(picture(seed=1)) != last
        for pair in ((first, last), (first, picture(seed=2)), (picture(seed=1), picture(seed=2))):
            job = await client.frame_interpolation(*pair, interval=0.01, seed=3)
            assert job.status == "completed"
        assert len({request.images for request in engine.requests}) == 1
        made = await client.generate(first, interval=0.01, metadata={"a": "b"})
        assert made.metadata == {"a": "b"}
        line = batch_line("a", last)
        assert line.body == {"image": {"upload": last.id}}
        batch = await client.poll_batch(await client.create_batch([line]), interval=0.01)
        assert batch.counts.completed == 1


async def test_an_idempotency_key_knows_the_picture_however_it_came(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        named = await upload(app, picture())
        headers = {"Idempotency-Key": "once"}
        first = await app.client.post(TO_VIDEO, json={"image": {"upload": named.id}}, headers=headers)
        body = {"image": {"data": base64.b64encode(picture()).decode()}}
        again = await app.client.post(TO_VIDEO, json=body, headers=headers)
        assert again.json()["id"] == first.json()["id"]
        await app.client.delete(f"/uploads/{named.id}")
        again = await app.client.post(TO_VIDEO, json={"image": {"upload": named.id}}, headers=headers)
        assert again.json()["id"] == first.json()["id"], "the job is there, whatever became of the upload"


async def test_an_upload_is_as_private_as_a_job(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        mine, theirs = make(app, "mine"), make(app, "theirs")
        named = await upload(app, picture(), **mine)
        refused = []
        for headers, upload_id in ((theirs, named.id), (mine, f"upload_{'0' * 64}")):
            posts = [
                await app.client.post(TO_VIDEO, json={"image": {"upload": upload_id}}, headers=headers),
                await app.client.post(TO_VIDEO, files={"image": (None, upload_id)}, headers=headers),
                await app.client.post(
                    "/v1/videos", json={"prompt": "x", "input_reference": upload_id}, headers=headers
                ),
                await app.client.get(f"/uploads/{upload_id}", headers=headers),
                await app.client.delete(f"/uploads/{upload_id}", headers=headers),
            ]
            assert [answer.status_code for answer in posts] == [404] * 5
            refused.append([error_of(answer).message.replace(upload_id, "ID") for answer in posts])
        assert refused[0] == refused[1], "in the same words"
        line = {"custom_id": "a", "url": TO_VIDEO, "body": {"image": {"upload": named.id}}}
        answer = await post_batch(app, [line], theirs)
        assert (answer.status_code, error_of(answer).param) == (422, "line 1: image")
        assert (await post_batch(app, [line], mine)).status_code == 202
        other = await upload(app, picture(), **theirs)
        assert other.id == named.id
        assert (await app.client.delete(f"/uploads/{named.id}", headers=theirs)).status_code == 204
        assert (await app.client.get(f"/uploads/{named.id}", headers=mine)).json()["status"] == "stored"


async def post_batch(app: Running, lines: list[dict[str, Any]], headers: dict[str, str]) -> httpx2.Response:
    content = "\n".join(map(json.dumps, lines)).encode()
    return await app.client.post("/batches", content=content, headers={**headers, "Content-Type": "application/jsonl"})


async def test_a_batch_of_uploads_is_a_few_bytes_a_row(tmp_path: Path) -> None:
    async with running(tmp_path, max_batch_bytes=4096, decoders=3) as app:
        named = [await upload(app, picture(seed=seed)) for seed in range(2)]
        bodies = [{"image": {"upload": named[row % 2].id}, "seed": row} for row in range(10)]
        lines = [{"custom_id": str(row), "url": TO_VIDEO, "body": body} for row, body in enumerate(bodies)]
        batch = Batch.model_validate((await post_batch(app, lines, {})).json())
        while batch.status != "completed":
            await asyncio.sleep(0.02)
            batch = Batch.model_validate((await app.client.get(batch.urls.self)).json())
        assert batch.counts.completed == 10
        assert [request.params.seed for request in app.engine.requests] == list(range(10)), (
            "in the order they were sent"
        )
        assert len({request.images for request in app.engine.requests}) == 2
        inline = [{**line, "body": {"image": {"data": "A" * 4096}}} for line in lines[:1]]
        assert (await post_batch(app, inline, {})).status_code == 413, "the batch's own limit"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"upload": "upload_12"}, "image.upload"),
        ({"upload": "../../etc/passwd"}, "image.upload"),
        ({"upload": f"upload_{'0' * 64}", "data": "AAAA"}, "image"),
        ({"upload": f"upload_{'0' * 64}", "url": "https://example.org/a.png"}, "image"),
    ],
)
async def test_what_names_no_upload_is_refused(tmp_path: Path, body: dict[str, str], param: str) -> None:
    async with running(tmp_path) as app:
        answer = await app.client.post(TO_VIDEO, json={"image": body})
        assert (answer.status_code, error_of(answer).param) == (422, param)


async def test_what_is_no_picture_or_too_large_is_not_stored(tmp_path: Path) -> None:
    async with running(tmp_path, max_upload_bytes=3_000_000, max_key_uploads_bytes=4_000_000) as app:
        for data, status, code in (
            (b"", 422, "unreadable_image"),
            (b"GIF7", 422, "unreadable_image"),
            (b"<html>" * 100, 422, "unreadable_image"),
            (padded_jpeg(3_000_001), 413, "body_too_large"),
        ):
            for answer in (
                await app.client.post("/uploads", content=data),
                await app.client.post("/uploads", files={"file": ("x", data, "image/jpeg")}),
                await app.client.post("/uploads", content=slowly(data)),
            ):
                assert (answer.status_code, error_of(answer).code) == (status, code)
        empty = await app.client.post("/uploads", files={"picture": ("x", picture(), "image/png")})
        assert (empty.status_code, error_of(empty).param) == (422, "file")
        assert files(app) == []
        await upload(app, padded_jpeg(2_500_000))
        for answer in (
            await app.client.post("/uploads", content=padded_jpeg(2_400_000)),
            await app.client.post("/uploads", content=slowly(padded_jpeg(2_400_000))),
        ):
            assert (answer.status_code, error_of(answer).code) == (429, "uploads_full")
            assert 86_000 < int(answer.headers["retry-after"]) <= 86_400
        assert len(files(app)) == 1


async def slowly(data: bytes) -> AsyncIterator[bytes]:
    """In pieces, without a declared length."""
    for start in range(0, len(data), 200_000):
        yield data[start : start + 200_000]


async def test_no_more_than_a_piece_is_in_memory_and_a_broken_transfer_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    real = IncomingFile.write

    def write(self: IncomingFile, piece: bytes) -> None:
        written.append(len(piece))
        real(self, piece)

    monkeypatch.setattr(IncomingFile, "write", write)
    data = padded_jpeg(9_000_000)
    async with running(tmp_path, max_uploads_bytes=5_000_000) as app:
        stored = await upload(app, data)
        assert (sum(written), stored.bytes) == (9_000_000, 9_000_000)
        assert max(written) < route._PIECE + len(data), "one chunk of the transport may come at once"
        written.clear()
        answer = await app.client.post("/uploads", content=slowly(data))
        assert answer.status_code == 200
        assert max(written) <= route._PIECE + 200_000

        async def broken() -> AsyncIterator[bytes]:
            yield data[:4_000_000]
            raise ConnectionError("gone")

        assert (await app.client.post("/uploads", content=broken())).status_code == 500
        assert len(files(app)) == 1


async def test_a_full_disk_is_507_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = IncomingFile.finish

    def full(self: IncomingFile) -> str:
        with real.__globals__["_room_for"](self._path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(IncomingFile, "finish", full)
    async with running(tmp_path) as app:
        answer = await app.client.post("/uploads", content=picture())
        assert (answer.status_code, error_of(answer).code) == (507, "storage_full")
        assert files(app) == []


async def test_on_a_local_folder_nothing_is_signed_and_a_redirect_is_the_file(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        intent = {"sha256": "0" * 64, "bytes": 10}
        answer = await app.client.post("/uploads/signed", json=intent)
        assert (answer.status_code, error_of(answer).code) == (409, "not_on_s3")
        job = await app.until((await app.submit()).id, "completed")
        plain = await app.client.get(job.urls.content)
        asked = await app.client.get(job.urls.content, params={"redirect": True})
        assert (asked.status_code, asked.content) == (200, plain.content)


async def test_uploads_expire(tmp_path: Path) -> None:
    async with running(tmp_path, upload_kept_s=0.05) as app:
        named = await upload(app, picture())
        await asyncio.sleep(0.06)
        answer = await app.client.post(TO_VIDEO, json={"image": {"upload": named.id}})
        assert (answer.status_code, error_of(answer).code) == (404, "upload_not_found")
        await app.services.janitor.sweep()
        assert files(app) == []
        assert Job.model_validate((await app.post(seed=1)).json()).status == "queued"

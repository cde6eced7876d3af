"""Uploads and results where the artifacts lie on S3: signed PUTs and GETs, against moto's server over HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from stillmotion.types import SignedUpload

from serving.jobs.artifacts import Artifacts
from tests.contract.support import Running, error_of, picture, running
from tests.contract.test_large_uploads import padded_jpeg
from tests.unit.serving.offline.s3_support import BUCKET, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
moto = pytest.importorskip("moto")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder in an empty bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in environment(f"http://{host}:{port}").items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    httpx2.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()  # moto's memory is the process's
    httpx2.put(f"http://{host}:{port}/{BUCKET}").raise_for_status()
    yield f"s3://{BUCKET}/folder"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def keys(bucket: str) -> list[str]:
    """What lies in the folder, on a client of its own."""
    filesystem = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    return sorted(str(path).removeprefix(f"{BUCKET}/folder/") for path in filesystem.find(bucket))


async def sign(app: Running, data: bytes, size: int | None = None) -> SignedUpload:
    intent = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data) if size is None else size}
    answer = await app.client.post("/uploads/signed", json=intent)
    assert answer.status_code == 200, answer.text
    return SignedUpload.model_validate(answer.json())


async def put(signed: SignedUpload, data: bytes) -> httpx2.Response:
    assert signed.url is not None
    headers = {name: value for name, value in signed.headers.items() if name != "Content-Length"}
    async with httpx2.AsyncClient() as client:
        return await client.put(signed.url, content=data, headers=headers)


async def test_a_picture_goes_to_s3_past_the_service_and_makes_a_video(tmp_path: Path, bucket: str) -> None:
    data = picture()
    async with running(tmp_path, artifacts=bucket) as app:
        signed = await sign(app, data)
        assert (signed.upload.status, signed.method) == ("waiting", "PUT")
        assert signed.url is not None
        signed_headers = parse_qs(urlsplit(signed.url).query)["X-Amz-SignedHeaders"][0].split(";")
        assert {"content-length", "host", "x-amz-checksum-sha256"} <= set(signed_headers)
        early = await app.client.post("/generate/image-to-video", json={"image": {"upload": signed.upload.id}})
        assert (early.status_code, error_of(early).code) == (422, "upload_incomplete")
        assert (await put(signed, data)).status_code == 200
        looked = (await app.client.get(f"/uploads/{signed.upload.id}")).json()
        assert (looked["status"], looked["bytes"]) == ("stored", len(data))
        answer = await app.client.post("/generate/image-to-video", json={"image": {"upload": signed.upload.id}})
        assert answer.status_code == 202, answer.text
        await app.until(answer.json()["id"], "completed")
        assert (await sign(app, data)).url is None, "it is there"
        again = await app.client.post("/uploads", content=data)
        assert (again.status_code, again.json()["id"]) == (200, signed.upload.id)


async def test_another_picture_than_was_signed_is_refused_when_it_is_named(tmp_path: Path, bucket: str) -> None:
    """moto takes what S3 itself refuses (by the signed checksum and length): so this is the second line."""
    async with running(tmp_path, artifacts=bucket, max_image_bytes=1_000_000) as app:
        for sent, status, code in ((picture(seed=5), 422, "upload_mismatch"), (padded_jpeg(1_000_001), 413, "")):
            signed = await sign(app, picture(seed=len(sent)), 100)
            await put(signed, sent)
            answer = await app.client.post("/generate/image-to-video", json={"image": {"upload": signed.upload.id}})
            assert (answer.status_code, error_of(answer).param) == (status, "image")
            assert error_of(answer).code == (code or "image_too_large")
        intent = {"sha256": "0" * 64, "bytes": 100_000_001}
        assert (await app.client.post("/uploads/signed", json=intent)).status_code == 413


async def test_a_large_upload_streams_and_is_removed(tmp_path: Path, bucket: str) -> None:
    data = padded_jpeg(20_000_000)
    async with running(tmp_path, artifacts=bucket) as app:
        stored = (await app.client.post("/uploads", content=data)).json()
        assert stored["id"] == f"upload_{hashlib.sha256(data).hexdigest()}"
        (key,) = keys(bucket)
        assert key.startswith("uploads/")
        assert (await app.client.post("/uploads", content=picture())).status_code == 201
        assert (await app.client.delete(f"/uploads/{stored['id']}")).status_code == 204
        assert len(keys(bucket)) == 1 and key not in keys(bucket)


async def test_content_by_a_redirect(tmp_path: Path, bucket: str) -> None:
    async with running(tmp_path, artifacts=bucket) as app:
        job = await app.until((await app.submit()).id, "completed")
        direct = await app.client.get(job.urls.content)
        for path in (job.urls.content, f"/v1/videos/{job.id}/content"):
            answer = await app.client.get(path, params={"redirect": "true"})
            assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
            async with httpx2.AsyncClient() as anybody:
                fetched = await anybody.get(answer.headers["location"])
                part = await anybody.get(answer.headers["location"], headers={"Range": "bytes=2-5"})
            assert (fetched.status_code, fetched.content) == (200, direct.content)
            assert fetched.headers["content-type"] == "video/mp4"
            assert f'filename="{job.id}-video.mp4"' in fetched.headers["content-disposition"]
            assert part.content == direct.content[2:6]
        head = await app.client.head(job.urls.content, params={"redirect": "true"})
        assert head.status_code == 200, "the URL is signed for a GET"
        known = {"If-None-Match": direct.headers["etag"]}
        assert (await app.client.get(job.urls.content, params={"redirect": True}, headers=known)).status_code == 304


def test_what_another_server_writes_is_seen(bucket: str) -> None:
    ours, theirs = Artifacts.open(bucket), Artifacts.open(bucket)
    theirs._fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    ours.write("job_1", "input.png", b"x", "image/png")
    assert ours.sweep({"job_1"}) == []
    theirs.write("job_1", "video.mp4", b"video", "video/mp4")
    assert ours.exists("job_1", "video.mp4")
    assert ours.size("job_1", "video.mp4") == 5

"""Bad input: each is refused with the one error shape that names the field, and leaves no job and no file behind."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from tests.contract.support import Running, error_of, listening, picture, running

URL = "/generate/image-to-video"


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[Running]:
    """With limits that a test exceeds in no time; a phone's pictures are in tests/contract/test_large_uploads.py."""
    async with running(tmp_path, max_image_bytes=20_000_000, max_form_bytes=30_000_000) as app:
        yield app


def bomb(width: int = 10_000, height: int = 10_000) -> bytes:
    """A 100-megapixel PNG of a few kilobytes: black and white, and all of it black."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(bytes((1 + width // 8) * height))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animated() -> bytes:
    frames = [Image.fromarray(np.full((32, 48, 3), value, np.uint8)) for value in (0, 120, 250)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def saved(mode: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


async def refused(app: Running, answer: Any, status: int, param: str | None, code: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = error_of(answer)
    assert error.param == param
    if code is not None:
        assert error.code == code
    assert await app.stored() == (0, [])
    assert app.engine.requests == []


PICTURES = {
    "empty": (b"", 422, "unreadable_image"),
    "text": (b"this is not a picture at all", 422, "unreadable_image"),
    "truncated jpeg": (picture("JPEG", (200, 200))[:3000], 422, "unreadable_image"),
    "half a png": (picture("PNG", (200, 200))[:60_000], 422, "unreadable_image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", 422, "unreadable_image"),
    "animated gif": (animated(), 422, "animated_image"),
    "one pixel high": (saved("RGB", (300, 1)), 422, "image_too_small"),
    "one pixel wide": (saved("L", (1, 300)), 422, "image_too_small"),
    "21 MB": (picture() + bytes(21_000_000), 413, "image_too_large"),
    "html": (b"<!doctype html><title>404</title>", 422, "unreadable_image"),
    "mp4": (b"\0\0\0\x20ftypisom" + bytes(100), 422, "unreadable_image"),
}


@pytest.mark.parametrize("name", PICTURES)
async def test_bad_pictures_in_a_form(app: Running, name: str) -> None:
    data, status, code = PICTURES[name]
    answer = await app.client.post(URL, files={"image": ("x.jpg", data, "image/jpeg")})
    await refused(app, answer, status, "image", code)


@pytest.mark.parametrize("name", ["empty", "text", "truncated jpeg", "animated gif"])
async def test_bad_pictures_in_json(app: Running, name: str) -> None:
    data, status, code = PICTURES[name]
    answer = await app.client.post(URL, json={"image": {"data": base64.b64encode(data).decode()}})
    await refused(app, answer, status, "image", code)


async def test_a_decompression_bomb(app: Running) -> None:
    data = bomb()
    assert len(data) < 100_000
    answer = await app.client.post(URL, files={"image": data})
    await refused(app, answer, 413, "image", "image_too_large")
    assert "65000000" in error_of(answer).message


FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "a cat"}, "prompt", "unknown_field"),
    ({"elevation": 10}, "elevation", "unknown_field"),
    ({"last_image_url": "x"}, "last_image_url", "unknown_field"),
    ({"webhook": "http://127.0.0.1/"}, "webhook", "invalid_value"),
    ({"fps": 0}, "fps", "out_of_range"),
    ({"fps": 61}, "fps", "out_of_range"),
    ({"fps": "many"}, "fps", "invalid_value"),
    ({"fps": ""}, "fps", "invalid_value"),
    ({"fps": 7.5}, "fps", "invalid_value"),
    ({"motion_bucket_id": 256}, "motion_bucket_id", "out_of_range"),
    ({"motion_bucket_id": 0}, "motion_bucket_id", "out_of_range"),
    ({"noise_aug_strength": -0.1}, "noise_aug_strength", "out_of_range"),
    ({"noise_aug_strength": "nan"}, "noise_aug_strength", "out_of_range"),
    ({"min_guidance_scale": "inf"}, "min_guidance_scale", "out_of_range"),
    ({"max_guidance_scale": 31}, "max_guidance_scale", "out_of_range"),
    ({"num_inference_steps": 0}, "num_inference_steps", "out_of_range"),
    ({"num_inference_steps": 100_000}, "num_inference_steps", "out_of_range"),
    ({"solver": "magic"}, "solver", "invalid_value"),
    ({"schedule": "magic"}, "schedule", "invalid_value"),
    ({"decode_chunk_size": 129}, "decode_chunk_size", "out_of_range"),
    ({"seed": -1}, "seed", "out_of_range"),
    ({"seed": 2**63}, "seed", "out_of_range"),
    ({"resize_mode": "zoom"}, "resize_mode", "invalid_value"),
    ({"output_format": "avi"}, "output_format", "invalid_value"),
    ({"priority": "urgent"}, "priority", "invalid_value"),
    ({"num_frames": 4}, "num_frames", "invalid_value"),
    ({"num_frames": 0}, "num_frames", "out_of_range"),
    ({"width": 100}, "width", "invalid_value"),
    ({"height": 4096}, "height", "invalid_value"),
    ({"model": "../../etc/passwd"}, "model", "model_not_found"),
    ({"metadata": "not json"}, "metadata", "invalid_value"),
    ({"metadata": "[1]"}, "metadata", "invalid_value"),
    ({"metadata": json.dumps({"x": "y" * 600})}, "metadata.x", "invalid_value"),
    ({"metadata": json.dumps({str(number): "" for number in range(17)})}, "metadata", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), FIELDS, ids=lambda value: str(value)[:40])
async def test_bad_fields_in_a_form(app: Running, fields: dict[str, Any], param: str, code: str) -> None:
    await refused(app, await app.post(**fields), 422, param, code)


JSON_FIELDS: list[tuple[str, str]] = [
    ('"fps": "7"', "fps"),
    ('"fps": true', "fps"),
    ('"fps": NaN', "fps"),
    ('"noise_aug_strength": NaN', "noise_aug_strength"),
    ('"noise_aug_strength": 1e999', "noise_aug_strength"),
    ('"min_guidance_scale": -Infinity', "min_guidance_scale"),
    ('"prompt": null', "prompt"),
    ('"seed": [1]', "seed"),
    ('"metadata": {"a": 1}', "metadata.a"),
]


@pytest.mark.parametrize(("text", "param"), JSON_FIELDS)
async def test_bad_fields_in_json(app: Running, text: str, param: str) -> None:
    data = base64.b64encode(picture()).decode()
    body = f'{{"image": {{"data": "{data}"}}, {text}}}'
    answer = await app.client.post(URL, content=body, headers={"Content-Type": "application/json"})
    await refused(app, answer, 422, param)


@pytest.mark.parametrize(
    ("image", "param"),
    [
        (None, "image"),
        ("a picture", "image"),
        ({}, "image.data"),
        ({"data": "%%%"}, "image.data"),
        ({"data": "data:image/png;base64,AAAA"}, "image.data"),
        ({"data": 5}, "image.data"),
        ({"path": "/etc/passwd"}, "image.path"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "image.url"),
        ({"url": "file:///etc/passwd"}, "image.url"),
    ],
)
async def test_bad_image_objects(app: Running, image: Any, param: str) -> None:
    await refused(app, await app.client.post(URL, json={"image": image}), 422, param)


async def test_forms_that_are_wrong(app: Running) -> None:
    file = ("a.png", picture(), "image/png")
    await refused(app, await app.client.post(URL, data={"fps": "7"}, files={"other": file}), 422, "other")
    await refused(app, await app.client.post(URL, files=[("image", file), ("image", file)]), 422, "image")
    await refused(app, await app.client.post(URL, files={"image": (None, "a text field")}), 422, "image")
    await refused(app, await app.client.post(URL, files={"fps": (None, "7")}), 422, "image", "missing_field")
    answer = await app.client.post(URL, files={"image": file}, data={"fps": ["7", "8"]})
    await refused(app, answer, 422, "fps", "duplicate_field")
    answer = await app.client.post(URL, files=[("image", file)] * 9)
    await refused(app, answer, 400, None, "malformed_body")


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"hello", 415),
        ("image/png", picture(), 415),
        ("application/x-www-form-urlencoded", b"fps=7", 415),
        ("", b"", 415),
        ("application/json", b"{not json", 400),
        ("application/json", b"", 400),
        ("application/json", b"\xff\xfe", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"[]", 422),
        ("multipart/form-data", b"no boundary", 400),
        ("multipart/form-data; boundary=x", b"garbage", 400),
    ],
)
async def test_bad_bodies(app: Running, kind: str, body: bytes, status: int) -> None:
    headers = {"Content-Type": kind} if kind else {}
    await refused(app, await app.client.post(URL, content=body, headers=headers), status, None)


async def test_30_mb_are_refused_unread(app: Running) -> None:
    sent = 0

    async def upload() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1_000_000
            yield bytes(1_000_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    declared = await app.client.post(URL, content=upload(), headers={**headers, "Content-Length": "31000000"})
    await refused(app, declared, 413, None, "body_too_large")
    assert sent <= 1_000_000
    sent = 0
    answer = await app.client.post(URL, content=upload(), headers={**headers, "Content-Type": "application/json"})
    await refused(app, answer, 413, None, "body_too_large")
    assert sent <= 32_000_000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/jobs/job_none", 404),
        ("GET", "/jobs/..%2f..%2fetc%2fpasswd", 404),
        ("POST", "/jobs/job_none/cancel", 404),
        ("DELETE", "/jobs/job_none", 404),
        ("GET", "/jobs/job_none/events", 404),
        ("GET", "/jobs/job_none/content", 404),
        ("GET", "/web/../app.py", 404),
        ("GET", "/web/__init__.py", 404),
        ("GET", "/docs/core.py", 404),
        ("POST", "/generate/text-to-speech", 404),
        ("GET", URL, 405),
        ("PUT", "/jobs", 405),
    ],
)
async def test_routes_and_methods_that_are_not(app: Running, method: str, path: str, status: int) -> None:
    answer = await app.client.request(method, path)
    assert (answer.status_code, error_of(answer).param) == (status, None)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("status=done", "status"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("colour=red", "colour"),
    ],
)
async def test_bad_queries(app: Running, query: str, param: str) -> None:
    await refused(app, await app.client.get(f"/jobs?{query}"), 422, param)


async def test_bad_headers(app: Running) -> None:
    await refused(app, await app.post(headers={"Idempotency-Key": "x" * 256}), 422, "Idempotency-Key")
    answer = await app.client.get("/jobs/job_none/events", headers={"Last-Event-ID": "later"})
    await refused(app, answer, 422, "Last-Event-ID")
    answer = await app.client.get("/jobs?after=job_none")
    await refused(app, answer, 404, "after")


async def test_the_request_id_is_the_callers_if_it_is_plain(app: Running) -> None:
    for asked, kept in (("abc-1.2_3", True), ("x" * 129, False), ("a b", False), ("<script>", False)):
        answer = await app.client.get("/nothing", headers={"X-Request-Id": asked})
        assert (error_of(answer).request_id == asked) is kept
    assert (await app.client.get("/models")).headers["x-request-id"].startswith("req_")


async def test_what_nobody_foresaw_is_a_500_in_the_same_shape(app: Running) -> None:
    app.services.database.close()
    (app.folder / "jobs.db").write_bytes(b"this is no database" * 1000)
    for leftover in ("jobs.db-wal", "jobs.db-shm"):
        (app.folder / leftover).unlink(missing_ok=True)
    answer = await app.client.get("/jobs")
    assert (answer.status_code, error_of(answer).code) == (500, "internal_error")
    assert "database" not in error_of(answer).message


async def test_an_interrupted_upload_leaves_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        host, port = app.address.removeprefix("http://").split(":")
        for kind in ("multipart/form-data; boundary=x", "application/json"):
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 5000000\r\n\r\n"
            part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + picture()
            writer.write(head.encode() + part + bytes(2_000_000))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(0.1)
        assert await app.stored() == (0, [])
        job = await app.submit()
        await app.until(job.id, "completed")

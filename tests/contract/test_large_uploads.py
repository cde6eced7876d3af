"""Photographs of phones over HTTP: tens of megabytes a file, in forms, within limits on what all uploads take."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.formparsers import MultiPartParser

from serving.gateway.images import PictureFile
from tests.contract.support import error_of, picture, running

URL = "/generate/image-to-video"


def padded_jpeg(size: int) -> bytes:
    """A JPEG of `size` bytes and few pixels: application segments hold the rest, as a phone's depth map does."""
    out = io.BytesIO()
    Image.new("RGB", (160, 96), "teal").save(out, "JPEG")
    plain = out.getvalue()
    segment = b"\xff\xef\xff\xff" + bytes(65_533)
    count, rest = divmod(size - len(plain), len(segment))
    return plain[:2] + segment * count + b"\xff\xfe" + (rest - 2).to_bytes(2, "big") + bytes(rest - 4) + plain[2:]


@pytest.mark.slow
async def test_a_phones_file_of_33_megabytes_is_taken_as_a_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = padded_jpeg(33_000_000)
    opened: list[PictureFile] = []
    real = PictureFile.read
    monkeypatch.setattr(PictureFile, "read", lambda self: opened.append(self) or real(self))
    async with running(tmp_path) as app:
        form = await app.client.post(
            URL, files={"image": ("a.jpg", large, "image/jpeg")}, headers={"Prefer": "wait=20"}
        )
        assert form.status_code == 200, form.text
        ours = await app.client.post(
            "/v1/videos", data={"prompt": "x"}, files={"input_reference": ("a.jpg", large, "image/jpeg")}
        )
        assert ours.status_code == 200, ours.text
        assert [one.size for one in opened] == [33_000_000] * 2
        assert all(one.file.closed for one in opened)
        as_json = await app.client.post(URL, json={"image": {"data": base64.b64encode(large).decode()}})
        assert as_json.status_code == 413
        assert "multipart/form-data" in error_of(as_json).message


async def test_a_file_and_a_form_that_are_too_large_are_413(tmp_path: Path) -> None:
    async with running(tmp_path, max_image_bytes=3_000_000, max_form_bytes=5_000_000) as app:
        for size, code in ((4_000_000, "image_too_large"), (6_000_000, "body_too_large")):
            answer = await app.client.post(URL, files={"image": ("a.jpg", padded_jpeg(size), "image/jpeg")})
            assert (answer.status_code, error_of(answer).code) == (413, code)
        assert await app.stored() == (0, [])


async def test_the_same_picture_is_the_same_request_in_a_form_and_in_json(tmp_path: Path) -> None:
    """The hash that an Idempotency-Key is compared by is over the pictures' bytes, wherever they lie."""
    data = padded_jpeg(1_500_000)
    async with running(tmp_path) as app:
        headers = {"Idempotency-Key": "once"}
        form = await app.client.post(URL, files={"image": ("a.jpg", data, "image/jpeg")}, headers=headers)
        body = {"image": {"data": base64.b64encode(data).decode()}}
        again = await app.client.post(URL, json=body, headers=headers)
        assert (form.status_code, again.status_code) == (202, 202)
        assert again.json()["id"] == form.json()["id"]
        body = {"image": {"data": base64.b64encode(picture()).decode()}}
        assert (await app.client.post(URL, json=body, headers=headers)).status_code == 409


async def test_all_uploads_at_once_are_bounded(tmp_path: Path) -> None:
    async with running(tmp_path, max_uploads_bytes=3_000_000) as app:
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        going = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield head + picture()
            yield b"\r\n--b\r\n" + b'Content-Disposition: form-data; name="x"; filename="y"\r\n\r\n' + bytes(2_000_000)
            await going.wait()
            yield b"\r\n--b--\r\n"

        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        first = asyncio.create_task(app.client.post(URL, content=slow(), headers=kind))
        await asyncio.sleep(0.2)
        second = await app.client.post(URL, files={"image": ("a.jpg", padded_jpeg(2_000_000), "image/jpeg")})
        assert (second.status_code, error_of(second).code) == (503, "too_many_uploads")
        assert int(second.headers["retry-after"]) > 0
        going.set()
        assert (await first).status_code == 422  # it sent an unknown file too
        third = await app.client.post(URL, files={"image": ("a.jpg", padded_jpeg(2_000_000), "image/jpeg")})
        assert third.status_code == 202, third.text


async def test_a_full_disk_under_uploads_is_507(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(self: MultiPartParser) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with running(tmp_path) as app:
        monkeypatch.setattr(MultiPartParser, "parse", full)
        answer = await app.post()
        assert (answer.status_code, error_of(answer).code) == (507, "storage_full")

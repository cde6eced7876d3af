"""The webhook of a submission: checked when it comes, told when the job has ended, its secret never shown."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from stillmotion.types import Job
from stillmotion.webhooks import verify

from tests.contract.support import error_of, picture, running
from tests.support.fakes import ScriptedEngine
from tests.unit.serving.jobs.test_webhooks import Receiver

SECRET = "whsec_" + base64.b64encode(b"nobody else knows").decode()
LOCAL = {"webhook_http": True, "webhook_allow": "127.0.0.0/8"}


async def test_the_end_of_a_job_is_told(tmp_path: Path) -> None:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    async with server, running(tmp_path, **LOCAL) as app:
        hook = json.dumps({"url": receiver.url, "secret": SECRET})
        job = await app.submit(webhook=hook)
        ended = await app.until(job.id, "completed")
        while not receiver.seen:
            await asyncio.sleep(0.02)
        headers, body = receiver.seen[0]
        message = verify(body, headers, SECRET)
        assert (message.type, message.data) == ("job.completed", ended)
        events = await app.client.get(job.urls.events)
        assert "whsec_" not in events.text + ended.model_dump_json() + body.decode()


async def test_a_cancelled_job_is_told_of_too_and_the_servers_secret_signs(tmp_path: Path) -> None:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    async with server, running(tmp_path, ScriptedEngine(gated=True), webhook_secret=SECRET, **LOCAL) as app:
        image = {"data": base64.b64encode(picture()).decode()}
        body = {"image": image, "webhook": {"url": receiver.url}}
        job = Job.model_validate((await app.client.post("/generate/image-to-video", json=body)).json())
        await app.client.post(job.urls.cancel)
        while not receiver.seen:
            await asyncio.sleep(0.02)
        assert verify(receiver.seen[0][1], receiver.seen[0][0], SECRET).type == "job.cancelled"


@pytest.mark.parametrize(
    ("webhook", "param"),
    [
        ({"url": "http://example.org/hook", "secret": SECRET}, "webhook.url"),
        ({"url": "file:///etc/passwd", "secret": SECRET}, "webhook.url"),
        ({"url": "https://me:pass@example.org/", "secret": SECRET}, "webhook.url"),
        ({"url": "nonsense", "secret": SECRET}, "webhook.url"),
        ({"url": "https://[::1", "secret": SECRET}, "webhook.url"),
        ({"url": "https://example.org/", "secret": "short"}, "webhook.secret"),
        ({"url": "https://example.org/", "secret": "whsec_abc"}, "webhook.secret"),
        ({"url": "https://example.org/"}, "webhook.secret"),
        ({"secret": SECRET}, "webhook.url"),
        ({"url": "https://example.org/", "method": "PUT"}, "webhook.method"),
        ("https://example.org/", "webhook"),
    ],
)
async def test_a_webhook_that_could_never_come_is_refused(tmp_path: Path, webhook: Any, param: str) -> None:
    async with running(tmp_path) as app:
        refused = await app.post(webhook=json.dumps(webhook))
        assert refused.status_code == 422
        assert error_of(refused).param == param
        assert await app.stored() == (0, [])

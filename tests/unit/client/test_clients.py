"""Both clients through httpx2 itself: what goes over the wire, and that they are the same."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, get_type_hints

import httpx2
import pytest
from stillmotion import (
    AsyncClient,
    Client,
    FrameInterpolationSettings,
    ImageToVideoSettings,
    JobEvent,
    MultiViewSettings,
    RetryPolicy,
    TextToVideoSettings,
    errors,
)
from stillmotion.types import REQUESTS

from tests.unit.client.support import PNG, Broken, Script, event_bytes, job_json, output_json

FAST = RetryPolicy(first_s=0.001, longest_s=0.002)
DATA = b"0123456789" * 100


def job(status: str = "completed", **changes: Any) -> httpx2.Response:
    return httpx2.Response(200, json=job_json(status, **changes))


def sync_client(script: Script, **settings: Any) -> Client:
    return Client("http://service/prefix/", transport=httpx2.MockTransport(script), retry=FAST, **settings)


def async_client(script: Script, **settings: Any) -> AsyncClient:
    return AsyncClient("http://service/prefix/", transport=httpx2.MockTransport(script), retry=FAST, **settings)


def methods(kind: type) -> dict[str, list[str]]:
    named = inspect.getmembers(kind, inspect.isfunction)
    return {name: list(inspect.signature(f).parameters) for name, f in named if not name.startswith("_")}


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    assert methods(Client) == methods(AsyncClient)
    assert set(methods(Client)) >= {"generate", "submit", "get", "poll", "subscribe", "stream_events", "cancel"}
    assert set(methods(Client)) >= {"text_to_video", "frame_interpolation", "multi_view"}
    assert set(methods(Client)) >= {"delete", "list", "models", "download_to", "content", "close"}


def test_settings_are_the_wire_types_fields() -> None:
    kinds = {
        "image-to-video": ImageToVideoSettings,
        "text-to-video": TextToVideoSettings,
        "frame-interpolation": FrameInterpolationSettings,
        "multi-view": MultiViewSettings,
    }
    assert set(kinds) == set(REQUESTS)
    for task, kind in kinds.items():
        assert set(get_type_hints(kind)) == set(REQUESTS[task][0].model_fields) - {"prompt"}, task


def test_a_batch_is_waited_for_longer_than_other_answers_and_no_less_than_was_asked() -> None:
    batch = {"id": "b", "status": "completed", "created_at": 1.0, "total": 0, "counts": {}, "urls": {}}
    batch["urls"] = {"self": "/b", "cancel": "/c", "results": "/r"}
    for timeout, reads in ((None, [900.0, 60.0]), (1200.0, [1200.0, 1200.0])):
        script = Script(httpx2.Response(202, json=batch), httpx2.Response(200, json=batch))
        with sync_client(script, timeout=timeout) as client:
            client.create_batch([])
            client.get_batch("b")
        assert [request.extensions["timeout"]["read"] for request in script.requests] == reads
        assert [request.extensions["timeout"]["connect"] for request in script.requests] == [timeout or 10.0] * 2


def test_a_submission_on_the_wire() -> None:
    script = Script(httpx2.Response(503, headers={"Retry-After": "0"}), job("queued"))
    with sync_client(script, api_key="secret") as client:
        got = client.submit(PNG, seed=7, noise_aug_strength=0.1, model=None, metadata={"shot": "4"})
    assert (got.id, got.status) == ("job_1", "queued")
    first, second = script.requests
    assert str(second.url) == "http://service/prefix/generate/image-to-video"
    assert second.headers["Authorization"] == "Bearer secret"
    assert second.headers["User-Agent"].startswith("stillmotion-python/")
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert second.headers["Content-Type"].startswith("multipart/form-data")
    body = second.content
    assert PNG in body
    assert b'name="image"; filename="image"\r\nContent-Type: image/png' in body
    assert b'name="seed"\r\n\r\n7\r\n' in body
    assert b'name="metadata"\r\n\r\n{"shot": "4"}\r\n' in body
    assert b'name="model"' not in body


def test_a_prompt_goes_as_json_and_comes_back_at_once_if_asked() -> None:
    script = Script(job("queued"))
    with sync_client(script) as client:
        got = client.text_to_video("a red ball", wait=False, seed=7, fps=None, metadata={"shot": "4"})
    assert got.status == "queued"
    (request,) = script.requests
    assert str(request.url) == "http://service/prefix/generate/text-to-video"
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.content) == {"prompt": "a red ball", "seed": 7, "metadata": {"shot": "4"}}
    assert request.headers["Idempotency-Key"]


def test_two_pictures_go_as_two_parts_and_the_end_is_waited_for() -> None:
    script = Script(job("queued"), job("completed"))
    other = PNG + b"other"
    with sync_client(script) as client:
        assert client.frame_interpolation(PNG, other, interval=0.001, num_inference_steps=3).status == "completed"
    body = script.requests[0].content
    assert str(script.requests[0].url).endswith("/generate/frame-interpolation")
    first, last = body.index(b'name="image"'), body.index(b'name="last_image"')
    assert first < body.index(PNG) < last < body.index(other)
    assert b'name="num_inference_steps"' in body


async def test_the_asynchronous_client_sends_the_same() -> None:
    script = Script(job("queued"), job("completed"))
    async with async_client(script) as client:
        got = await client.multi_view(PNG, elevation=-12.5, interval=0.001)
    assert got.status == "completed"
    assert str(script.requests[0].url).endswith("/generate/multi-view")
    assert b'name="elevation"\r\n\r\n-12.5' in script.requests[0].content


def test_the_environment_names_the_service_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLMOTION_BASE_URL", "https://there/api")
    monkeypatch.setenv("STILLMOTION_API_KEY", "from-environment")
    script = Script(httpx2.Response(200, json={"data": []}))
    with Client(transport=httpx2.MockTransport(script)) as client:
        assert client.models() == ()
    assert str(script.requests[0].url) == "https://there/api/models"
    assert script.requests[0].headers["Authorization"] == "Bearer from-environment"
    monkeypatch.delenv("STILLMOTION_API_KEY")
    script = Script(httpx2.Response(200, json={"data": []}))
    with Client("http://here", transport=httpx2.MockTransport(script)) as client:
        client.models()
    assert str(script.requests[0].url) == "http://here/models"
    assert "Authorization" not in script.requests[0].headers
    with pytest.raises(ValueError, match="http"):
        Client("localhost:8000")


def test_every_request_has_a_timeout() -> None:
    script = Script(httpx2.Response(200, json={"data": []}), httpx2.Response(200, json={"data": []}))
    with sync_client(script) as client:
        client.models()
    with sync_client(script, timeout=3.0) as client:
        client.models()
    first, second = (request.extensions["timeout"] for request in script.requests)
    assert None not in first.values()
    assert set(second.values()) == {3.0}


def script_of_a_day() -> Script:
    """Submit and follow a job whose stream breaks; download it though that breaks; cancel; delete; list."""
    finished = job_json(output=output_json(hashlib.sha256(DATA).hexdigest(), len(DATA)))
    return Script(
        job("queued"),
        httpx2.Response(200, stream=Broken(event_bytes(1, "queued", "queued"), event_bytes(2))),
        httpx2.Response(200, content=event_bytes(3, "completed", "completed")),
        httpx2.Response(200, json=finished),
        httpx2.Response(200, stream=Broken(DATA[:100])),
        httpx2.Response(206, content=DATA[100:], headers={"content-range": "bytes 100-999/1000"}),
        job("cancelled"),
        httpx2.Response(204),
        httpx2.Response(200, json={"data": [job_json(job_id="a")], "has_more": True, "last_id": "a"}),
        httpx2.Response(200, json={"data": [job_json(job_id="b")], "has_more": False}),
    )


PATHS = [
    "POST /prefix/generate/image-to-video",
    "GET /prefix/jobs/job_1/events",
    "GET /prefix/jobs/job_1/events",
    "GET /prefix/jobs/job_1",
    "GET /prefix/jobs/job_1/content",
    "GET /prefix/jobs/job_1/content",
    "POST /prefix/jobs/job_1/cancel",
    "DELETE /prefix/jobs/job_1",
    "GET /prefix/jobs",
    "GET /prefix/jobs",
]


def paths(script: Script) -> list[str]:
    return [f"{request.method} {request.url.path}" for request in script.requests]


def test_a_day_with_the_blocking_client(tmp_path: Path) -> None:
    script = script_of_a_day()
    seen: list[JobEvent] = []
    with sync_client(script) as client:
        finished = client.subscribe(PNG, seen.append, seed=1)
        assert client.download_to(finished.id, tmp_path / "x.mp4").read_bytes() == DATA
        assert client.cancel(finished).status == "cancelled"
        client.delete(finished)
        assert [listed.id for listed in client.list()] == ["a", "b"]
    assert [event.id for event in seen] == [1, 2, 3]
    assert paths(script) == PATHS


async def test_a_day_with_the_asyncio_client(tmp_path: Path) -> None:
    script = script_of_a_day()
    seen: list[JobEvent] = []

    async def on_update(event: JobEvent) -> None:
        seen.append(event)

    async with async_client(script) as client:
        finished = await client.subscribe(PNG, on_update, seed=1)
        assert (await client.download_to(finished.id, tmp_path / "x.mp4")).read_bytes() == DATA
        assert (await client.cancel(finished)).status == "cancelled"
        await client.delete(finished)
        assert [listed.id async for listed in client.list()] == ["a", "b"]
    assert [event.id for event in seen] == [1, 2, 3]
    assert paths(script) == PATHS


def test_waiting_with_the_blocking_client() -> None:
    script = Script(job("queued"), job("in_progress"), job("failed", error={"code": "x", "message": "broke"}))
    with sync_client(script) as client, pytest.raises(errors.JobFailed, match="broke"):
        client.generate(PNG, interval=0.001)
    with sync_client(Script(job("in_progress"), job())) as client:
        assert client.poll("job_1", interval=0.001).status == "completed"
    with sync_client(Script(*[job("in_progress")] * 50)) as client, pytest.raises(errors.JobTimeout):
        client.poll("job_1", interval=0.01, timeout=0.03)


async def test_waiting_with_the_asyncio_client() -> None:
    script = Script(job("queued"), job("in_progress"), job("cancelled"))
    async with async_client(script) as client:
        with pytest.raises(errors.JobCancelled):
            await client.generate(PNG, interval=0.001)
    async with async_client(Script(job("in_progress"), job(), httpx2.Response(200, content=DATA))) as client:
        finished = await client.poll("job_1", interval=0.001)
        assert await client.content(finished, "thumbnail") == DATA
    async with async_client(Script(httpx2.Response(200, json={"data": []}), job())) as client:
        assert await client.models() == ()
        assert (await client.get("job_1")).id == "job_1"


def test_errors_of_a_streamed_answer_are_read() -> None:
    gone = httpx2.Response(404, json={"error": {"type": "t", "code": "no_such_job", "message": "gone"}})
    with sync_client(Script(gone)) as client, pytest.raises(errors.NotFound, match="gone"):
        next(client.stream_events("nothing"))


async def test_errors_of_an_async_streamed_answer_are_read() -> None:
    gone = httpx2.Response(404, json={"error": {"type": "t", "code": "no_such_job", "message": "gone"}})
    async with async_client(Script(gone)) as client:
        with pytest.raises(errors.NotFound, match="gone"):
            await anext(client.stream_events("nothing"))


def test_leaving_a_stream_early_closes_it() -> None:
    closed: list[bool] = []

    class Body(httpx2.SyncByteStream):
        def __iter__(self) -> Any:
            yield event_bytes(1)
            yield event_bytes(2)

        def close(self) -> None:
            closed.append(True)

    with sync_client(Script(httpx2.Response(200, stream=Body()))) as client:
        stream = client.stream_events("job_1", after=1)
        assert next(stream).id == 2
        assert closed == []
        stream.close()
        assert closed == [True]

"""The SDK against the gateway over real connections: every method and every error, with and without asyncio."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import stillmotion
from stillmotion import AsyncClient, Client, RetryPolicy, batch_line, errors
from stillmotion.types import Job, JobEvent

from serving.engine.protocol import Failed
from tests.contract.proxy import cutting
from tests.contract.support import entry, finished, listening, picture
from tests.support.fakes import ScriptedEngine

QUICK = RetryPolicy(max_retries=2, first_s=0.01, longest_retry_after_s=0)
"""A Retry-After is not waited for here."""


class Blocking:
    """A `Client` with the face of an `AsyncClient`: its calls run in threads, so that one test serves both."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._client = Client(*arguments, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        if name in ("list", "stream_events"):
            return lambda *arguments, **options: self._iterated(method(*arguments, **options))
        return partial(asyncio.to_thread, method)

    async def __aenter__(self) -> Blocking:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._client.close)

    @staticmethod
    async def _iterated(items: Any) -> AsyncGenerator[Any, None]:
        try:
            while (item := await asyncio.to_thread(next, items, None)) is not None:
                yield item
        finally:
            await asyncio.to_thread(items.close)


Connect = Callable[[str], Any]


@pytest.fixture(params=[Blocking, AsyncClient], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Connect:
    return partial(request.param, retry=QUICK)


async def test_every_method_does_what_it_says(connect: Connect, tmp_path: Path) -> None:
    async with listening(tmp_path) as app, connect(app.address) as client:
        (model,) = await client.models()
        assert (model.id, model.num_frames, model.defaults) == ("scripted", [5], entry().defaults)

        settings = {"seed": 2**40, "fps": 12, "solver": "heun", "metadata": {"project": 'Ä, "b"'}, "priority": "low"}
        made = await client.generate(picture("JPEG"), interval=0.01, model="scripted", **settings)
        assert (made.status, made.seed, made.progress, made.metadata) == ("completed", 2**40, 100, settings["metadata"])
        assert app.engine.requests[0].params.fps == 12
        assert app.engine.requests[0].params.solver == "heun"

        result = ScriptedEngine.result(app.engine.requests[0])
        done = finished(app.engine.requests[0])
        assert await client.content(made) == done.video
        assert await client.content(made.id, "thumbnail") == result.thumbnail
        assert await client.content(made, "frames") == result.frames
        assert json.loads(await client.content(made, "manifest")) == done.manifest
        path = await client.download_to(made.id, tmp_path / "clip.mp4")
        assert path.read_bytes() == done.video

        events: list[JobEvent] = []
        followed = await client.subscribe(picture(), events.append, num_inference_steps=3)
        assert followed == events[-1].job == await client.get(followed.id)
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        assert [event.job.step for event in events if event.event == "step"] == [1, 2, 3]
        assert [event async for event in client.stream_events(followed, after=3)] == events[3:]

        submitted = await client.submit(picture())
        polled = await client.poll(submitted, interval=0.01)
        assert [job async for job in client.list(page_size=1)] == [polled, followed, made]
        in_order = [job.id async for job in client.list(status="completed", order="asc")]
        assert in_order == [made.id, followed.id, submitted.id]
        assert await client.cancel(made) == made  # it has ended
        await client.delete(followed)
        assert [job.id async for job in client.list(order="asc")] == [made.id, submitted.id]


async def test_cancel_ends_a_running_job(connect: Connect, tmp_path: Path) -> None:
    async with listening(tmp_path, ScriptedEngine(gated=True)) as app, connect(app.address) as client:
        job = await client.submit(picture())
        await app.until(job.id, "in_progress")
        assert (await client.cancel(job)).id == job.id
        with pytest.raises(stillmotion.JobCancelled) as caught:
            await client.poll(job, interval=0.01)
        assert caught.value.job.cancelled_at_step == 0
        with pytest.raises(stillmotion.JobCancelled):
            await client.download_to(job.id, tmp_path / "none.mp4")
        assert not (tmp_path / "none.mp4").exists()


async def test_a_job_that_fails_says_why(connect: Connect, tmp_path: Path) -> None:
    engine = ScriptedEngine(ending=Failed("out_of_memory", "the frames do not fit"))
    async with listening(tmp_path, engine) as app, connect(app.address) as client:
        with pytest.raises(stillmotion.JobFailed, match="the frames do not fit") as caught:
            await client.generate(picture(), interval=0.01)
        assert (caught.value.code, caught.value.job.status) == ("out_of_memory", "failed")
        with pytest.raises(stillmotion.JobFailed):
            await client.subscribe(picture(), lambda event: None)


async def refused(call: Any, kind: type[stillmotion.APIError], status: int, code: str) -> stillmotion.APIError:
    """The error of a call, which is of exactly this kind."""
    with pytest.raises(kind) as caught:
        await call
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.message
    assert (caught.value.request_id or "").startswith("req_")
    return caught.value


async def test_what_is_wrong_with_a_request_has_its_own_error(connect: Connect, tmp_path: Path) -> None:
    async with listening(tmp_path, max_image_bytes=4000) as app, connect(app.address) as client:
        await refused(client.get("job_none"), stillmotion.NotFound, 404, "job_not_found")
        await refused(client.delete("job_none"), stillmotion.NotFound, 404, "job_not_found")
        await refused(client.submit(picture(size=(96, 64))), stillmotion.TooLarge, 413, "image_too_large")
        for settings, param, code in (
            ({"num_inference_steps": 0}, "num_inference_steps", "out_of_range"),
            ({"noise_aug_strength": float("nan")}, "noise_aug_strength", "out_of_range"),
            ({"prompt": "a cat"}, "prompt", "unknown_field"),
            ({"model": "other"}, "model", "model_not_found"),
        ):
            error = await refused(client.submit(picture(), **settings), stillmotion.Unprocessable, 422, code)
            assert error.param == param
        error = await refused(client.submit(b"text"), stillmotion.Unprocessable, 422, "unreadable_image")
        assert error.param == "image"
        assert await app.stored() == (0, [])


async def test_a_body_beyond_the_limit_is_answered_though_it_is_not_read(connect: Connect, tmp_path: Path) -> None:
    async with listening(tmp_path, max_form_bytes=100_000) as app, connect(app.address) as client:
        await refused(client.submit(bytes(8_000_000)), stillmotion.TooLarge, 413, "body_too_large")
        assert (await client.generate(picture(), interval=0.01)).status == "completed"


async def test_conflicts(connect: Connect, tmp_path: Path) -> None:
    async with listening(tmp_path, ScriptedEngine(gated=True)) as app, connect(app.address) as client:
        job = await client.submit(picture(), idempotency_key="mine", seed=1)
        await app.until(job.id, "in_progress")
        path = tmp_path / "early.mp4"
        await refused(client.download_to(job, path), stillmotion.Conflict, 409, "content_not_ready")
        assert not path.exists()
        await refused(client.delete(job), stillmotion.Conflict, 409, "job_in_progress")
        assert (await client.submit(picture(), idempotency_key="mine", seed=1)).id == job.id
        other = client.submit(picture(), idempotency_key="mine", seed=2)
        await refused(other, stillmotion.Conflict, 409, "idempotency_mismatch")
        with pytest.raises(stillmotion.JobTimeout) as caught:
            await client.poll(job, timeout=0.05)
        assert caught.value.job.status == "in_progress"
        app.engine.gate.set()
        assert (await client.poll(job, interval=0.01)).status == "completed"


async def test_a_full_queue_says_when_to_come_back(connect: Connect, tmp_path: Path) -> None:
    engine = ScriptedEngine(gated=True)
    async with listening(tmp_path, engine, queue_limit=1) as app, connect(app.address) as client:
        await app.until((await client.submit(picture())).id, "in_progress")
        await client.submit(picture())
        error = await refused(client.submit(picture()), stillmotion.RateLimited, 429, "queue_full")
        assert error.retry_after is not None
        assert error.retry_after >= 1
        engine.gate.set()


async def test_a_service_that_cannot_serve_says_so(connect: Connect, tmp_path: Path) -> None:
    engine = ScriptedEngine(start_failure=RuntimeError("no weights"))
    async with listening(tmp_path, engine) as app, connect(app.address) as client:
        error = await refused(client.submit(picture()), stillmotion.ServiceUnavailable, 503, "not_ready")
        assert error.retry_after == 30
        assert "no weights" in error.message


async def test_no_service(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with connect(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(stillmotion.APIConnectionError, match=str(port)):
            await client.models()


async def test_a_submission_whose_answer_is_lost_makes_one_job(connect: Connect, tmp_path: Path) -> None:
    async with listening(tmp_path) as app, cutting(app.address, 0) as proxy, connect(proxy.address) as client:
        job = await client.submit(picture(), seed=6)
        keys = proxy.header("Idempotency-Key")
        assert len(keys) == 2
        assert keys[0] == keys[1] is not None
        assert (await client.poll(job, interval=0.01)).seed == 6
        assert [request.job_id for request in app.engine.requests] == [job.id]
        assert [each.id async for each in client.list()] == [job.id]


async def test_a_deletion_whose_answer_is_lost_is_done(connect: Connect, tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        job = await app.submit()
        await app.until(job.id, "completed")
        async with cutting(app.address, 0) as proxy, connect(proxy.address) as client:
            await client.delete(job)
            assert len(proxy.sent) == 2
        assert await app.stored() == (0, [])


async def test_answers_lost_for_good_are_a_connection_error(connect: Connect, tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        async with cutting(app.address, 0, 0, 0) as proxy, connect(proxy.address) as client:
            with pytest.raises(stillmotion.APIConnectionError):
                await client.submit(picture())
            assert len(set(proxy.header("Idempotency-Key"))) == 1
        assert (await app.stored())[0] == 1


async def test_a_broken_stream_goes_on_after_the_last_event(connect: Connect, tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        job = await app.submit(num_inference_steps=6)
        await app.until(job.id, "completed")
        async with connect(app.address) as client:
            whole = [event async for event in client.stream_events(job)]
        async with cutting(app.address, 3000, 5000) as proxy, connect(proxy.address) as client:
            assert [event async for event in client.stream_events(job)] == whole
            first, second, third = proxy.header("Last-Event-ID")
        assert first is None
        assert 0 < int(second or 0) < int(third or 0) < len(whole)


async def test_a_broken_download_goes_on_where_it_broke(connect: Connect, tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        job: Job = await app.until((await app.submit(seed=3)).id, "completed")
        async with cutting(app.address, 1500, 1500) as proxy, connect(proxy.address) as client:
            path = await client.download_to(job, tmp_path / "clip.mp4")
            first, second, third = proxy.header("Range")
        assert job.output
        assert hashlib.sha256(path.read_bytes()).hexdigest() == job.output.sha256
        starts = [int((value or "").removeprefix("bytes=").removesuffix("-")) for value in (second, third)]
        assert first is None
        assert 0 < starts[0] < starts[1] < job.output.bytes
        assert not list(tmp_path.glob(".*part"))


async def test_a_batch_goes_out_and_its_results_come_back(tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        async with AsyncClient(app.address) as client:
            lines = [batch_line(f"shot {seed}", picture(), seed=seed, metadata={"n": str(seed)}) for seed in range(3)]
            batch = await client.create_batch(lines, idempotency_key="once")
            assert (await client.create_batch(lines, idempotency_key="once")).id == batch.id
            done = await client.poll_batch(batch, timeout=60, interval=0.01)
            assert (done.status, done.counts.completed) == ("completed", 3)
            found = [result async for result in client.batch_results(batch)]
            assert [(one.custom_id, one.row, one.job.seed) for one in found] == [(f"shot {n}", n, n) for n in range(3)]
            assert (await client.cancel_batch(batch)).counts.completed == 3
            assert (await client.get_batch(batch.id)).total == 3
            with pytest.raises(errors.NotFound):
                await client.get_batch("batch_0")
            with pytest.raises(errors.Unprocessable, match="line 1"):
                await client.create_batch([batch_line("a", picture(), fps=0)])

        def blocking() -> list[str]:
            with Client(app.address) as client:
                made = client.create_batch([batch_line("b", picture(), seed=5)])
                client.poll_batch(made, timeout=60, interval=0.01)
                return [result.custom_id for result in client.batch_results(made.id)]

        assert await asyncio.to_thread(blocking) == ["b"]


async def test_a_batch_that_takes_too_long_says_so(tmp_path: Path) -> None:
    async with listening(tmp_path, ScriptedEngine(gated=True)) as app, AsyncClient(app.address) as client:
        batch = await client.create_batch([batch_line("a", picture())])
        with pytest.raises(errors.BatchTimeout, match="1 rows"):
            await client.poll_batch(batch, timeout=0.05, interval=0.01)
        stopped = await client.cancel_batch(batch)
        assert stopped.counts.queued == 0

"""Previews: asked for, told among the events with their picture, replayed without the old ones, kept once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from stillmotion import AsyncClient
from stillmotion.types import Job, JobEvent

from serving.gateway import create_app
from tests.contract.support import Running, entry, error_of, listening, picture, settings
from tests.contract.test_api_events import collect
from tests.support.fakes import ScriptedEngine


@asynccontextmanager
async def drawing(folder: Path, engine: ScriptedEngine | None = None) -> AsyncIterator[Running]:
    """The app with a checkpoint that draws previews and one that does not, behind a real server."""
    import asyncio

    engine = engine or ScriptedEngine()
    entries = [replace(entry("draws"), previews=True), entry("plain")]
    app = create_app(engine, entries, settings(folder))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        async with httpx2.AsyncClient(base_url=address, timeout=10) as client:
            yield Running(client, engine, app.state.services, folder, address)
    finally:
        server.should_exit = True
        await serving


async def test_previews_come_as_events_and_only_the_newest_is_kept(tmp_path: Path) -> None:
    async with drawing(tmp_path) as app:
        job = await app.submit(previews="true", num_inference_steps=4)
        done = await app.until(job.id, "completed")
        events = await collect(app, job.urls.events)
        shown = [event.preview for event in events if event.event == "preview"]
        assert [preview and preview.step for preview in shown] == [1, 2, 3, 4]
        assert [preview and preview.jpeg for preview in shown] == [None, None, None, ScriptedEngine.preview(4)]
        assert all(event.preview is None for event in events if event.event != "preview")
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        kept = [name for name in (await app.stored())[1] if "preview" in name]
        assert kept == [f"{job.id}/preview-4.1.jpg"]
        answer = await app.client.get(done.urls.content, params={"variant": "preview"})
        assert (answer.content, answer.headers["content-type"]) == (ScriptedEngine.preview(4), "image/jpeg")
        assert (await app.client.get(done.urls.content)).status_code == 200, "the video is there as ever"
        database = sum(path.stat().st_size for path in tmp_path.glob("jobs.db*"))
        assert ScriptedEngine.preview(3) not in b"".join(path.read_bytes() for path in tmp_path.glob("jobs.db*"))
        assert database > 0


async def test_a_preview_is_there_while_the_job_runs_and_a_follower_sees_it(tmp_path: Path) -> None:
    async with drawing(tmp_path, ScriptedEngine(gated=True)) as app:
        job = await app.submit(previews="true", num_inference_steps=3)
        early = await app.client.get(job.urls.content, params={"variant": "preview"})
        assert (early.status_code, error_of(early).code) == (409, "content_not_ready")
        seen: list[JobEvent] = []
        async with AsyncClient(app.address) as client:
            app.engine.gate.set()
            async for event in client.stream_events(job):
                seen.append(event)
                if event.event == "preview":
                    assert (await client.content(job, "preview")).startswith(b"\xff\xd8\xff")
            await client.download_to(job, tmp_path / "preview.jpg", "preview")
        assert (tmp_path / "preview.jpg").read_bytes() == ScriptedEngine.preview(3)
        assert any(event.preview is not None and event.preview.jpeg for event in seen)
        last = seen[-3].id
        assert await collect(app, job.urls.events, **{"Last-Event-ID": str(last)}) == seen[-2:]


async def test_no_previews_unless_asked_for(tmp_path: Path) -> None:
    async with drawing(tmp_path) as app:
        job = await app.submit()
        await app.until(job.id, "completed")
        assert not app.engine.requests[0].previews
        assert "preview" not in {event.event for event in await collect(app, job.urls.events)}
        answer = await app.client.get(job.urls.content, params={"variant": "preview"})
        assert (answer.status_code, error_of(answer).code) == (409, "content_not_ready")


async def test_a_checkpoint_that_draws_none_says_so(tmp_path: Path) -> None:
    async with drawing(tmp_path) as app:
        models = (await app.client.get("/models")).json()["data"]
        assert {model["id"]: model["previews"] for model in models} == {"draws": True, "plain": False}
        answer = await app.post(previews="true", model="plain")
        assert (answer.status_code, error_of(answer).code, error_of(answer).param) == (422, "no_previews", "previews")
        assert await app.stored() == (0, [])
        body: dict[str, Any] = {"image": {"data": "AAAA"}, "previews": "soon"}
        refused = await app.client.post("/generate/image-to-video", json=body)
        assert (refused.status_code, error_of(refused).param) == (422, "previews")


async def test_a_second_attempt_takes_the_place_of_the_firsts_preview(tmp_path: Path) -> None:
    """As after a crash: the row still names the old file, which goes with the next preview."""
    async with listening(tmp_path) as app:
        store, leases = app.services.store, app.services.dispatcher._leases
        app.services.dispatcher.refuse_work()
        answer = await app.client.post("/generate/image-to-video", files={"image": ("x.png", picture(), "image/png")})
        assert answer.status_code == 503
        from tests.unit.serving.jobs.test_transitions import new_job

        store.create(replace(new_job("job_x"), previews=True), 10)
        first = leases.acquire()
        assert first is not None
        assert first.previews
        file = app.services.artifacts.write("job_x", "preview-1.1.jpg", b"1", "image/jpeg")
        assert leases.preview(first, 1, file) is None
        leases.release(first)
        second = leases.acquire()
        assert second is not None
        newer = app.services.artifacts.write("job_x", "preview-1.2.jpg", b"2", "image/jpeg")
        assert leases.preview(second, 1, newer) == "preview-1.1.jpg"
        assert store.file("job_x", "preview").name == "preview-1.2.jpg"
        assert isinstance(store.get("job_x"), Job)

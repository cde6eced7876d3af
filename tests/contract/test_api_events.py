"""Server-sent events over a real socket: real progress, replay, and an end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from stillmotion.types import JobEvent

from tests.contract.support import Running, listening, running
from tests.support.fakes import ScriptedEngine


async def follow(app: Running, url: str, **headers: str) -> AsyncIterator[JobEvent]:
    """The stream's events, parsed by hand: fields until a blank line."""
    async with app.client.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "data" in fields:
                event = JobEvent.model_validate_json(fields["data"])
                assert (fields["id"], fields["event"]) == (str(event.id), event.event)
                yield event
            fields = {}


async def collect(app: Running, url: str, **headers: str) -> list[JobEvent]:
    return [event async for event in follow(app, url, **headers)]


async def test_every_step_is_told_as_it_happens(tmp_path: Path) -> None:
    engine = ScriptedEngine(gated=True)
    async with listening(tmp_path, engine) as app:
        job = await app.submit(num_inference_steps=5)
        seen: list[JobEvent] = []
        async for event in follow(app, job.urls.events):
            if event.job.phase == "denoise" and event.event == "phase":
                assert not engine.gate.is_set()  # told before the first step was taken
                engine.gate.set()
            seen.append(event)
        assert [event.id for event in seen] == list(range(1, len(seen) + 1))
        assert (seen[0].event, seen[-1].event) == ("queued", "completed")
        assert [event.job.step for event in seen if event.event == "step"] == [1, 2, 3, 4, 5]
        phases = [event.job.phase for event in seen if event.event == "phase"]
        assert phases == ["queued", "encode", "denoise", "decode", "mux"]
        progress = [event.job.progress for event in seen]
        assert progress == sorted(progress)
        assert (progress[0], progress[-1]) == (0, 100)
        assert seen[-1].job.output is not None


async def test_last_event_id_replays_only_what_came_after(tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        job = await app.submit()
        everything = await collect(app, job.urls.events)
        for last in (1, 4, len(everything) - 1):
            assert await collect(app, job.urls.events, **{"Last-Event-ID": str(last)}) == everything[last:]
        assert await collect(app, job.urls.events, **{"Last-Event-ID": str(len(everything))}) == []
        assert await collect(app, job.urls.events) == everything


async def test_events_survive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job = await app.submit()
        before = await collect(app, job.urls.events)
    async with running(tmp_path) as app:
        assert await collect(app, job.urls.events) == before


async def test_many_followers_see_the_same_and_one_that_leaves_harms_nobody(tmp_path: Path) -> None:
    async with listening(tmp_path, ScriptedEngine(gated=True)) as app:
        job = await app.submit()
        leaver = follow(app, job.urls.events)
        await anext(leaver)
        await leaver.aclose()
        followers = [asyncio.create_task(collect(app, job.urls.events)) for _ in range(3)]
        await app.until(job.id, "in_progress")
        app.engine.gate.set()
        first, *others = await asyncio.gather(*followers)
        assert all(other == first for other in others)


async def test_cancel_and_delete_end_the_stream(tmp_path: Path) -> None:
    async with listening(tmp_path, ScriptedEngine(gated=True)) as app:
        running_job, waiting_job, deleted = [await app.submit() for _ in range(3)]
        streams = [asyncio.create_task(collect(app, job.urls.events)) for job in (running_job, waiting_job, deleted)]
        await app.until(running_job.id, "in_progress")
        await app.client.post(waiting_job.urls.cancel)
        await app.client.delete(deleted.urls.self)
        await app.client.post(running_job.urls.cancel)
        ends = await asyncio.gather(*streams)
        assert ends[0][-1].event == ends[1][-1].event == "cancelled"
        assert [event.event for event in ends[2]] in ([], ["queued"])


async def test_steps_are_thinned_but_first_last_and_end_are_not(tmp_path: Path) -> None:
    async with running(tmp_path, progress_interval_s=3600) as app:
        job = await app.submit(num_inference_steps=50)
        events = await collect(app, job.urls.events)
        assert [event.job.step for event in events if event.event == "step"] == [1, 50]
        assert events[-1].event == "completed"


async def test_the_wire_is_plain_json(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        job = await app.until((await app.submit()).id, "completed")
        answer = await app.client.get(job.urls.events)
        data: list[dict[str, Any]] = [
            json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")
        ]
        assert data[-1]["job"] == job.model_dump(mode="json")


async def test_a_stream_at_one_gateway_tells_of_a_job_that_another_runs(tmp_path: Path) -> None:
    idle = ScriptedEngine(warm=asyncio.Event())  # never warm: it runs nothing
    async with listening(tmp_path, ScriptedEngine(gated=True)) as runs, listening(tmp_path, idle) as other:
        job = await runs.submit(num_inference_steps=3)
        following = asyncio.create_task(collect(other, job.urls.events))
        await runs.until(job.id, "in_progress")
        seen = [event async for event in follow(other, job.urls.events) if runs.engine.gate.set() is None]
        assert await following == seen
        assert [event.id for event in seen] == list(range(1, len(seen) + 1))
        assert seen[-1].event == "completed"
        last = {"Last-Event-ID": str(seen[2].id)}
        assert await collect(other, job.urls.events, **last) == seen[3:]
        cancelled = await runs.submit()
        runs.engine.gate.clear()
        assert (await other.client.post(cancelled.urls.cancel)).status_code == 200
        assert (await other.until(cancelled.id, "cancelled", "completed")).is_terminal

"""What a hosted model answers, by an engine that follows a script: the protocol alone, without Triton."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serving.engine.protocol import CancelledAt, Completed, EngineEvent, Failed, Stepped
from serving.jobs.runner import ENGINE_STOPPED
from serving.triton import client, hosting
from serving.triton.hosting import BROKEN_EXIT, Host
from serving.triton.wire import HEARTBEAT, Frame, RequestFrame, Status, entry_from_fields, pack_control, unpack_event
from tests.contract.support import entry, picture
from tests.support.fakes import ScriptedEngine


async def answers(
    host: Host, told: dict[str, Any] | RequestFrame, pictures: bytes | None = None, gone: bool = False
) -> list[EngineEvent | Status]:
    """Every event of one request."""
    sent: list[Frame] = []
    frame = told if isinstance(told, RequestFrame) else RequestFrame(json.dumps(told).encode(), pictures)
    await host.answer(frame, sent.append, lambda: gone)
    return [unpack_event(one) for one in sent if one != HEARTBEAT]


def hosted(**script: Any) -> tuple[Host, ScriptedEngine]:
    engine = ScriptedEngine(ready=True, **script)
    return Host(entry(), engine, 7), engine


async def test_a_generation_is_streamed_and_its_manifest_names_the_version() -> None:
    host, engine = hosted()
    events = await answers(host, {"id": "x", "params": {"seed": 3}}, picture())
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4]
    done = events[-1]
    assert isinstance(done, Completed)
    assert done.manifest["repository_version"] == 7
    assert engine.requests[0].params.seed == 3
    assert host.in_flight == 0


async def test_two_attempts_at_one_job_may_overlap() -> None:
    host, engine = hosted(gated=True)
    first = asyncio.create_task(answers(host, {"id": "x"}, picture()))
    second = asyncio.create_task(answers(host, {"id": "x"}, picture()))
    while len(engine.requests) < 2:
        await asyncio.sleep(0.01)
    (status,) = await answers(host, pack_control("cancel", "me", "x"))
    assert isinstance(status, Status)
    assert [type((await one)[-1]) for one in (first, second)] == [CancelledAt, CancelledAt]
    assert len({request.job_id for request in engine.requests}) == 2


class BrokenEngine(ScriptedEngine):
    """One whose device is broken from a moment on."""

    broken = False


async def test_a_broken_device_ends_the_process_once_all_have_their_last_events() -> None:
    engine, left = BrokenEngine(ready=True, gated=True), list[tuple[int, int]]()
    host = Host(entry(), engine, 7)

    def leave(code: int) -> None:
        left.append((code, host.in_flight))

    await host.leave_if_broken(leave)
    assert not left
    running = asyncio.create_task(answers(host, {"id": "x"}, picture()))
    while not engine.requests:
        await asyncio.sleep(0.01)
    engine.broken = True
    leaving = [asyncio.create_task(host.leave_if_broken(leave)) for _ in range(2)]
    await asyncio.sleep(0.1)
    assert not left, "a request is still without its last event"
    engine.gate.set()
    await asyncio.gather(running, *leaving)
    assert left == [(BROKEN_EXIT, 0)]


async def test_a_caller_that_has_gone_is_cancelled() -> None:
    host, _ = hosted(gated=True)
    events = await answers(host, {"id": "x"}, picture(), gone=True)
    assert isinstance(events[-1], CancelledAt)


async def test_a_status_describes_the_model_and_the_work_of_others() -> None:
    host, engine = hosted(gated=True, estimate_s=40.0)
    running = asyncio.create_task(answers(host, {"id": "x", "client": "me"}, picture()))
    while not engine.requests:
        await asyncio.sleep(0.01)
    (mine,) = await answers(host, pack_control("status", "me"))
    (yours,) = await answers(host, pack_control("status", "you"))
    assert isinstance(mine, Status)
    assert isinstance(yours, Status)
    assert (mine.in_flight, mine.others_s, mine.repository_version, mine.draining) == (1, 0.0, 7, False)
    assert 35 < yours.others_s <= 40
    told = entry_from_fields(mine.entry, "here")
    assert (told.name, told.task, told.defaults, told.num_frames) == ("scripted", entry().task, entry().defaults, (5,))
    engine.gate.set()
    await running


async def test_a_drained_model_says_so_and_a_stopped_one_stops_its_engine() -> None:
    host, engine = hosted()
    (drained,) = await answers(host, pack_control("drain", "me"))
    assert isinstance(drained, Status)
    assert drained.draining
    assert not engine.stopped
    await answers(host, pack_control("stop", "me"))
    assert engine.stopped


async def test_what_is_wrong_with_a_request_is_a_typed_failure() -> None:
    host, engine = hosted()
    for told, pictures, code in (
        ({"id": "x", "params": {"prompt": "no"}}, picture(), "unknown_field"),
        ({"id": "x", "params": {"fps": "fast"}}, picture(), "invalid_value"),
        ({"id": "x"}, None, "invalid_value"),
        ({"id": "x", "colour": 1}, None, "invalid_value"),
    ):
        (failed,) = await answers(host, told, pictures)
        assert isinstance(failed, Failed)
        assert failed.code == code, failed
    assert not engine.requests


def test_stopped_is_what_the_queue_takes_back() -> None:
    assert client.ENGINE_STOPPED == ENGINE_STOPPED


async def test_heartbeats_come_while_an_engine_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "HEARTBEAT_S", 0.01)
    host, engine = hosted(gated=True)
    sent: list[Frame] = []
    frame = RequestFrame(json.dumps({"id": "x"}).encode(), picture())
    running = asyncio.create_task(host.answer(frame, sent.append, lambda: False, beats=True))
    while sent.count(HEARTBEAT) < 3:
        await asyncio.sleep(0.01)
    engine.gate.set()
    await running
    assert isinstance(unpack_event(sent[-1]), Completed)

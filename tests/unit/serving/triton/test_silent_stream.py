"""A stream whose instance was killed: Triton never ends it, so one that had heartbeats is given up when they stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from serving.engine.protocol import CancelledAt, EngineEvent, Stepped
from serving.triton import channel as module
from serving.triton.channel import Channel, InstanceLost, ServerLost
from serving.triton.wire import RequestFrame, Status

BEAT = None
STEP = Stepped(1, 2, None)


class SilentAfter(Channel):
    """A channel whose stream has some answers and then nothing, without an end."""

    def __init__(self, *answers: EngineEvent | None) -> None:
        self.url, self._answers = "a:1", answers
        self.closed = False

    async def _exchange(
        self, name: str, version: int, frame: RequestFrame, request_id: str
    ) -> AsyncGenerator[EngineEvent | Status | None, None]:
        try:
            for answer in self._answers:
                yield answer
            await asyncio.Event().wait()
        finally:
            self.closed = True


async def events(channel: Channel) -> list[EngineEvent]:
    return [event async for event in channel.generate("mini", 1, RequestFrame(b"{}"), "job")]


async def test_it_is_given_up_once_its_heartbeats_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.05)
    channel = SilentAfter(BEAT, STEP, BEAT)
    with pytest.raises(ServerLost, match="nothing came for"):
        await events(channel)
    assert channel.closed


async def test_a_host_without_heartbeats_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.05)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(events(SilentAfter(STEP)), 0.3)


class OneDeadInstance(Channel):
    """A channel to a server that gives every other request to an instance that is dead."""

    def __init__(self, dead_first: int) -> None:
        self.url, self._warned, self.left, self.calls = "a:1", "", dead_first, 0

    async def _call(
        self, name: str, version: int, frame: RequestFrame, request_id: str
    ) -> AsyncGenerator[EngineEvent | Status | None, None]:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise InstanceLost(self.url, "Stub process 'mini_0_0' is not healthy.")
        yield STEP
        yield CancelledAt(1, 0.0)


async def test_a_request_that_met_a_dead_instance_is_sent_again() -> None:
    channel = OneDeadInstance(dead_first=3)
    assert [type(event) for event in await events(channel)] == [Stepped, CancelledAt]
    assert channel.calls == 4


async def test_a_server_of_which_all_instances_are_dead_is_lost() -> None:
    channel = OneDeadInstance(dead_first=1000)
    with pytest.raises(ServerLost, match="not healthy"):
        await events(channel)
    assert channel.calls == module.INSTANCE_TRIES

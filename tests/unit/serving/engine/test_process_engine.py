"""An engine behind a pipe: events, cancels, ends and restarts. Its child is a thread; one slow test has processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from model.catalog import ModelEntry
from model.errors import CheckpointError, InvalidRequest, StillmotionError
from model.presets import preset
from model.tasks import task
from model.testing import build_random
from serving.engine import process
from serving.engine.data_parallel import engines_on
from serving.engine.inprocess import InProcessEngine
from serving.engine.process import ProcessEngine
from serving.engine.protocol import (
    TERMINAL,
    CancelledAt,
    Checkpointed,
    Completed,
    Engine,
    EngineEvent,
    EngineRequest,
    Failed,
    Stepped,
)
from serving.engine.settings import EngineSettings
from tests.integration.triton_support import picture
from tests.support.fakes import ScriptedEngine, model_entry


class ThreadProcess:
    """A process's part, played by a thread; killing it closes its end of the pipe."""

    pid = None

    def __init__(self, *, target: Any, args: tuple[Any, ...], name: str, daemon: bool) -> None:
        self._connection: Connection = args[0]
        self._thread = threading.Thread(target=self._run, args=args[1:], name=name, daemon=daemon)

    def _run(self, entries: Sequence[ModelEntry], settings: EngineSettings, make: Any) -> None:
        asyncio.run(process._serve(self._connection, entries, make(entries, settings)))
        self._connection.close()

    def start(self) -> None:
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def kill(self) -> None:
        raise AssertionError("it had to be killed")

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)


class Context:
    """multiprocessing's, with threads."""

    Process = ThreadProcess

    @staticmethod
    def Pipe() -> tuple[Any, Any]:  # noqa: N802 - its name there

        mine, theirs = multiprocessing.Pipe()

        class Kept:
            """The child's end, which its thread closes, not the parent."""

            send, recv = theirs.send, theirs.recv
            closes = 0

            def close(self) -> None:
                Kept.closes += 1
                if Kept.closes == 2:  # as the end of a process does, it wakes whoever reads at either end
                    with socket.socket(fileno=os.dup(theirs.fileno())) as end:
                        end.shutdown(socket.SHUT_RDWR)

        return mine, Kept()


class Breaking(ScriptedEngine):
    """Breaks when it is told to."""

    broken = False


class Children:
    """The engines that were made, in order."""

    def __init__(self, *engines: ScriptedEngine) -> None:
        self._waiting = list(engines)
        self.made: list[ScriptedEngine] = []

    def __call__(self, entries: Sequence[ModelEntry], settings: EngineSettings) -> Engine:
        self.made.append(self._waiting.pop(0))
        return self.made[-1]


@pytest.fixture
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.multiprocessing, "get_context", lambda _: Context)
    monkeypatch.setattr(process, "STATUS_S", 0.01)
    monkeypatch.setattr(process, "FIRST_RESTART_S", 0.01)


@asynccontextmanager
async def running(*engines: ScriptedEngine) -> AsyncIterator[tuple[ProcessEngine, Children]]:
    children = Children(*engines)
    engine = ProcessEngine([model_entry()], EngineSettings(device="cpu"), children)
    await engine.start()
    try:
        while not engine.ready:
            await asyncio.sleep(0.01)
        yield engine, children
    finally:
        await engine.stop()


def request(number: int = 0, steps: int = 4) -> EngineRequest:
    params = model_entry().resolve({"num_inference_steps": steps}, seed=number)
    return EngineRequest(f"job-{number}", "image-to-video", params, (b"",), "mp4")


async def collected(engine: Engine, one: EngineRequest) -> list[EngineEvent]:
    return [event async for event in engine.submit(one)]


async def until(true: Any) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("_threads")
async def test_events_and_estimates_come_through_the_pipe() -> None:
    async with running(ScriptedEngine(capacity=3, estimate_s=2.0)) as (engine, children):
        events = await collected(engine, request())
        assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4]
        assert isinstance(events[-1], Completed)
        assert events[-1] == ScriptedEngine.result(request())
        assert engine.capacity == 3
        params = request().params
        size = params.width * params.height * params.num_frames / (5 * 64 * 96)
        assert engine.estimate("image-to-video", params) == pytest.approx(2.0 * size)
        assert engine.estimate("another", params) is None
    assert children.made[0].stopped


@pytest.mark.usefixtures("_threads")
async def test_a_cancel_and_a_closed_stream_reach_the_child() -> None:
    async with running(ScriptedEngine(capacity=2, gated=True)) as (engine, children):
        (child,) = children.made
        first = asyncio.create_task(collected(engine, request(1)))
        await until(lambda: child.requests)
        with pytest.raises(InvalidRequest, match="already in flight"):
            engine.submit(request(1))
        engine.cancel("job-1")
        assert isinstance((await first)[-1], CancelledAt)
        stream = engine.submit(request(2))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        await until(lambda: "job-2" in child.cancelled)


@pytest.mark.usefixtures("_threads")
async def test_a_broken_child_ends_its_jobs_as_stopped_and_another_serves() -> None:
    async with running(Breaking(gated=True), ScriptedEngine()) as (engine, children):
        lost = asyncio.create_task(collected(engine, request(1)))
        await until(lambda: children.made[0].requests)
        children.made[0].broken = True  # type: ignore[attr-defined]
        children.made[0].gate.set()
        last = (await lost)[-1]
        assert isinstance(last, Completed | Failed)  # it had the time to end, or is the queue's again
        await until(lambda: len(children.made) == 2 and engine.ready)
        assert isinstance((await collected(engine, request(1)))[-1], Completed)


@pytest.mark.usefixtures("_threads")
async def test_a_child_that_does_not_start_says_why() -> None:
    error = CheckpointError("no such folder", param="model")
    engine = ProcessEngine([model_entry()], EngineSettings(), Children(ScriptedEngine(start_failure=error)))
    with pytest.raises(StillmotionError, match="no such folder") as caught:
        await engine.start()
    assert (caught.value.code, caught.value.param) == (error.code, "model")
    await engine.stop()
    (last,) = await collected(engine, request())
    assert isinstance(last, Failed) and last.code == "engine_stopped"


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_two_processes_on_a_cpu_make_the_videos_of_one_and_one_that_is_killed_comes_back(tmp_path: Path) -> None:
    """Two engine processes as the devices: the frames of an engine in this process, and a killed one's jobs resume."""
    entry = build_random(tmp_path / "tiny", preset("tiny"), task("image-to-video"), seed=5)
    settings = EngineSettings(device="cpu", threads=1, warm_up=False, deterministic=True, checkpoint_every_s=0.0)

    def job(number: int, steps: int, **more: Any) -> EngineRequest:
        params = entry.resolve({"num_inference_steps": steps}, seed=number)
        return EngineRequest(f"job-{number}", entry.name, params, (picture(),), "mp4", **more)

    async def alone(number: int, steps: int) -> str:
        engine = InProcessEngine([entry], settings)
        await engine.start()
        last = (await collected(engine, job(number, steps)))[-1]
        await engine.stop()
        assert isinstance(last, Completed)
        return last.frames_sha256

    both = engines_on(["cpu", "cpu"], [entry], settings)
    processes: Any = both._engines
    await both.start()
    try:
        ends = [events[-1] for events in await asyncio.gather(*(collected(both, job(n, 2)) for n in range(4)))]
        assert [end.frames_sha256 for end in ends if isinstance(end, Completed)] == [
            await alone(n, 2) for n in range(4)
        ]
        await until(lambda: all((one := engine.stats()) and one.completed == 2 for engine in processes))

        victim = processes[0]
        events: list[EngineEvent] = []
        async for event in victim.submit(job(9, 30)):
            events.append(event)
            if isinstance(event, Checkpointed) and event.step == 3:
                os.kill(victim.process_id, signal.SIGKILL)
        last = events[-1]
        assert isinstance(last, Failed) and last.code == "engine_stopped"
        assert processes[1].ready
        state = [event for event in events if isinstance(event, Checkpointed)][-1]
        resumed = (await collected(both, job(9, 30, resume_from=state.state)))[-1]
        assert isinstance(resumed, Completed)
        assert resumed.frames_sha256 == await alone(9, 30)
        async with asyncio.timeout(120):
            while not victim.ready:
                await asyncio.sleep(0.1)
    finally:
        await both.stop()
    assert all(engine.process_id is None for engine in processes)
    assert all(isinstance(event, TERMINAL) for event in [last, resumed])

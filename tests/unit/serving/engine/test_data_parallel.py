"""Several engines as one: each request goes where the least work is left, and what one loses the others do not."""

from __future__ import annotations

import asyncio
from dataclasses import fields

import pytest
import torch

from model.errors import CheckpointError, InvalidRequest
from model.platform import resolve_devices
from serving.engine.data_parallel import DataParallelEngine, engines_on, merged
from serving.engine.protocol import TERMINAL, Completed, EngineEvent, EngineRequest, Failed
from serving.engine.settings import EngineSettings
from serving.engine.stats import EngineStats, Recorder
from tests.support.fakes import ScriptedEngine, model_entry


def request(number: int, steps: int = 4) -> EngineRequest:
    params = model_entry().resolve({"num_inference_steps": steps}, seed=number)
    return EngineRequest(f"job-{number}", "image-to-video", params, (b"",), "mp4")


async def ended(engine: DataParallelEngine, one: EngineRequest) -> EngineEvent:
    events = [event async for event in engine.submit(one)]
    assert sum(isinstance(event, TERMINAL) for event in events) == 1
    return events[-1]


async def under_way(engine: DataParallelEngine, *requests: EngineRequest) -> list[asyncio.Task[EngineEvent]]:
    """The requests in work, one submitted after the other."""
    tasks = []
    for one in requests:
        tasks.append(asyncio.create_task(ended(engine, one)))
        await asyncio.sleep(0.01)
    return tasks


async def started(*engines: ScriptedEngine) -> DataParallelEngine:
    both = DataParallelEngine(engines)
    await both.start()
    return both


async def test_a_request_goes_where_the_least_work_is_left() -> None:
    slow = ScriptedEngine(capacity=4, gated=True, estimate_s=10.0)
    quick = ScriptedEngine(capacity=4, gated=True, estimate_s=3.0)
    both = await started(slow, quick)
    tasks = await under_way(both, *(request(number) for number in range(6)))
    assert both.estimate("image-to-video", request(0).params) == 3.0
    assert both.capacity == 8
    # 0 | 0: the first; 10 | 0: the second; then 3, 6, 9 beside 10 until the other has less.
    assert [one.job_id for one in slow.requests] == ["job-0", "job-5"]
    assert [one.job_id for one in quick.requests] == [f"job-{number}" for number in range(1, 5)]
    both.cancel("job-3")
    assert (slow.cancelled, quick.cancelled) == (set(), {"job-3"})
    slow.gate.set()
    quick.gate.set()
    outcomes = await asyncio.gather(*tasks)
    assert [isinstance(one, Completed) for one in outcomes] == [number != 3 for number in range(6)]


async def test_an_engine_without_room_comes_last() -> None:
    small, large = ScriptedEngine(capacity=1, gated=True), ScriptedEngine(capacity=3, gated=True, estimate_s=60.0)
    both = await started(small, large)
    tasks = await under_way(both, *(request(number) for number in range(3)))
    assert (len(small.requests), len(large.requests)) == (1, 2)
    for engine in (small, large):
        engine.gate.set()
    await asyncio.gather(*tasks)


async def test_what_one_engine_loses_is_for_the_queue_and_the_others_serve_on() -> None:
    lost, well = ScriptedEngine(ending=Failed("engine_stopped", "its process ended")), ScriptedEngine(capacity=2)
    both = await started(lost, well)
    first = await ended(both, request(0))
    assert isinstance(first, Failed) and first.code == "engine_stopped"
    lost.ready = False
    assert both.ready and both.capacity == 2
    assert isinstance(await ended(both, request(1)), Completed)
    well.ready = False
    none = await ended(both, request(2))
    assert isinstance(none, Failed) and none.code == "engine_stopped"


async def test_it_starts_with_those_that_start_and_fails_with_none(caplog: pytest.LogCaptureFixture) -> None:
    broken = ScriptedEngine(start_failure=CheckpointError("no such folder"))
    both = await started(broken, ScriptedEngine())
    assert both.ready
    assert "no such folder" in caplog.text
    neither = DataParallelEngine([broken, ScriptedEngine(start_failure=CheckpointError("nor this"))])
    with pytest.raises(CheckpointError, match="no such folder"):
        await neither.start()


def test_counts_are_added() -> None:
    recorders = Recorder(), Recorder()
    recorders[0].called(2, 4, 1.5)
    recorders[1].called(2, 4, 1.0)
    recorders[1].called(1, 2, 0.5)
    both = merged([one.snapshot(1, 2) for one in recorders])
    assert both is not None
    assert (both.denoiser_calls, both.rows_per_call, both.batch_slots) == (3, {2: 2, 1: 1}, 10)
    assert (both.denoise_s, both.waiting, both.active) == (3.0, 2, 4)
    assert {one.name for one in fields(EngineStats)} == set(EngineStats.__slots__)
    assert merged([]) is None


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("_two_gpus")
def test_names_of_devices() -> None:
    assert resolve_devices("all") == resolve_devices("cuda,cuda:1") == ["cuda:0", "cuda:1"]
    assert resolve_devices("cuda:1") == ["cuda:1"]
    assert resolve_devices("cpu,cpu") == ["cpu", "cpu"]  # engines share a CPU, and no GPU
    with pytest.raises(InvalidRequest, match="cuda:0 twice"):
        resolve_devices("cuda,cuda:0")
    with pytest.raises(InvalidRequest, match="2 CUDA devices"):
        resolve_devices("cuda:0,cuda:2")
    for odd in ("", "auto", "xpu", "cuda:0,"):
        with pytest.raises(InvalidRequest, match="cuda:0,cuda:1 or all"):
            resolve_devices(odd)


def test_all_of_none_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidRequest, match="sees no CUDA device"):
        resolve_devices("all")


def test_engines_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    for settings, each in ((EngineSettings(), 3), (EngineSettings(threads=5), 5)):
        both = engines_on(["cuda:0", "cuda:1"], [], settings)
        own = [engine._settings for engine in both._engines]  # type: ignore[attr-defined]
        assert [(one.device, one.threads) for one in own] == [("cuda:0", each), ("cuda:1", each)]

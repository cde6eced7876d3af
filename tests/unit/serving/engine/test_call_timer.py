"""Times of calls and encodings on a GPU: each its own, whatever the device did before. On a clock made of numbers."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving.engine import lanes, warmup
from serving.engine.lanes import CallTimer, DenoiserCall, StepLane
from serving.engine.oom import BatchSizeBackoff
from serving.engine.profile import Profile
from serving.engine.settings import EngineSettings
from serving.engine.stats import Recorder

CUDA = torch.device("cuda")


class Device:
    """A stream: work queued on it ends at `now`; the host has waited for it up to `synchronized`."""

    def __init__(self) -> None:
        self.now = self.synchronized = 0.0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    stream = Device()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.at = -1.0

        def record(self, on: Device) -> None:
            self.at = on.now

        def synchronize(self) -> None:
            stream.synchronized = self.at

        def elapsed_time(self, end: Event) -> float:
            assert stream.synchronized >= end.at, "read before the device was there"
            return (end.at - self.at) * 1000

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    return stream


def call(slots: int) -> DenoiserCall:
    jobs: Any = (f"a job of {slots} slots",)
    return DenoiserCall(jobs, (slots,))


def test_each_call_has_its_own_seconds_one_call_late(device: Device) -> None:
    timer, measured = CallTimer(), []
    for slots, seconds, idle in ((2, 2.0, 0.0), (4, 5.0, 100.0), (2, 1.0, 0.0)):
        timer.start(CUDA)
        device.now += seconds
        before = device.synchronized
        measured += timer.finish(CUDA, call(slots))
        assert device.synchronized in (before, device.now - seconds, device.now - seconds - 100.0)  # one call ahead
        device.now += idle
    measured += timer.flush()
    assert [(one.slots, pytest.approx(seconds)) for one, seconds in measured] == [((2,), 2), ((4,), 5), ((2,), 1)]
    assert timer.flush() == []


def test_a_call_that_failed_leaves_the_one_before_as_it_was(device: Device) -> None:
    timer = CallTimer()
    timer.start(CUDA)
    device.now += 3.0
    assert timer.finish(CUDA, call(2)) == []
    timer.start(CUDA)  # and its call raises
    device.now += 50.0
    timer.start(CUDA)
    device.now += 1.0
    assert timer.finish(CUDA, call(4)) == [(call(2), pytest.approx(3.0))]


def test_on_a_cpu_a_call_is_over_when_it_returns() -> None:
    timer, cpu = CallTimer(), torch.device("cpu")
    timer.start(cpu)
    ((one, seconds),) = timer.finish(cpu, call(2))
    assert one == call(2)
    assert 0 <= seconds < 1
    assert timer.flush() == []


class Clock:
    """The host's clock, and work queued on a GPU: launching takes no time, and whoever waits is there at its end."""

    def __init__(self) -> None:
        self.now = self.queued_until = 0.0

    def perf_counter(self) -> float:
        return self.now

    def queue(self, seconds: float) -> None:
        self.queued_until = max(self.now, self.queued_until) + seconds

    def synchronize(self) -> None:
        self.now = max(self.now, self.queued_until)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (lanes, warmup):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: clock)
    return clock


def on_a_gpu() -> Any:
    """A model that is said to be on a GPU, with a profile that has measured nothing."""
    checkpoint = SimpleNamespace(unet=SimpleNamespace(device=CUDA))
    entry = SimpleNamespace(task=SimpleNamespace(pictures=()))
    return SimpleNamespace(checkpoint=checkpoint, entry=entry, profile=Profile(), colours=None, encoding=nullcontext)


def encode_s(model: Any) -> Any:
    """Of an encoding, as the profile has it."""
    return model.profile.as_dict()["encode_s"]


def test_an_encoding_is_timed_to_its_end(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    row: Any = SimpleNamespace(step=0, done=False)

    def encode(*_: object) -> Any:
        clock.queue(3.0)
        return row

    monkeypatch.setattr(lanes, "encode_request", encode)
    lane = StepLane(EngineSettings(), BatchSizeBackoff(), Recorder(), lambda _: nullcontext(), lambda *_: None)
    request = SimpleNamespace(previews=False, resume_from=None, images=())
    job: Any = SimpleNamespace(request=request, model=on_a_gpu(), compute_s=0.0, enter=lambda _: None)
    lane.encode(job)
    assert job.compute_s == pytest.approx(3.0)
    assert encode_s(job.model) == pytest.approx(3.0)


def test_the_encoding_before_the_service_is_ready_is_timed_to_its_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "prepare_row", lambda *_: clock.queue(3.0))
    model, params = on_a_gpu(), SimpleNamespace(width=8, height=8)
    warmup._dummy_row(model, params)  # type: ignore[arg-type]
    assert encode_s(model) == pytest.approx(3.0)

"""Times of denoiser calls on a GPU: each its own call's, whatever the device did before. On a clock made of numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serving.engine.lanes import CallTimer, DenoiserCall

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

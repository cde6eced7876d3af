"""The devices: each does what its scheduler says, taking exactly the time the cost table says.

A request goes to the device with the least work left, as the dispatcher does, whichever scheduler is used.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.policysim.schedulers import Running, Scheduler
from benchmarks.policysim.trace import Request

WINDOW_S = 15.0
"""Fairness is looked at in windows of this length."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trace.

    Args:
        finished_s: when each request was finished, by number.
        device: where each was served.
        service: (device, window) to tenant to the seconds of that device spent on it, a call's split by batch slots.
    """

    finished_s: list[float]
    device: list[int]
    service: dict[tuple[int, int], dict[str, float]]


class Device:
    """One GPU and the requests it was given."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.jobs: dict[int, Running] = {}
        self.group: list[Running] = []
        self.seconds = 0.0
        self._scheduler = scheduler

    def begin(self, now_s: float) -> float:
        """Begin what is next; when it will be done."""
        self.group = self._scheduler.next(self.jobs, now_s)
        first = self.group[0]
        self.seconds = first.piece_s
        if first.kind == "step":
            self.seconds = first.request.shape.call_s(sum(job.request.slots for job in self.group))
        return now_s + self.seconds

    def end(self) -> tuple[float, list[Running]]:
        """What was begun is done: the work it took off, and the requests that it finished."""
        before = sum(job.work_left_s for job in self.group)
        finished = [job for job in self.group if job.do(self.seconds)]
        after = sum(job.work_left_s for job in self.group)
        for job in finished:
            del self.jobs[job.request.number]
        self.group = []
        return before - after, finished

    def shares(self) -> Iterator[tuple[str, float]]:
        """Tenants and their seconds of what was begun."""
        slots = sum(job.request.slots for job in self.group)
        for job in self.group:
            yield job.request.tenant, self.seconds * job.request.slots / slots


def serve(trace: Sequence[Request], devices: int, make: Callable[[], Scheduler]) -> Outcome:
    """Every request of the trace, until the last is finished."""
    fleet = [Device(make()) for _ in range(devices)]
    outstanding = np.zeros(devices)
    outcome = Outcome([0.0] * len(trace), [0] * len(trace), defaultdict(lambda: defaultdict(float)))
    busy: list[tuple[float, int]] = []
    coming = iter(trace)
    request = next(coming, None)
    while busy or request is not None:
        if request is not None and (not busy or request.at_s <= busy[0][0]):
            now, where = request.at_s, int(outstanding.argmin())
            outstanding[where] += request.solo_s
            outcome.device[request.number] = where
            fleet[where].jobs[request.number] = Running(request)
            request = next(coming, None)
        else:
            now, where = heapq.heappop(busy)
            for tenant, seconds in fleet[where].shares():
                outcome.service[where, int(now // WINDOW_S)][tenant] += seconds
            done, finished = fleet[where].end()
            outstanding[where] = max(0.0, outstanding[where] - done)
            for job in finished:
                outcome.finished_s[job.request.number] = now
        if fleet[where].jobs and not fleet[where].group:
            heapq.heappush(busy, (fleet[where].begin(now), where))
    return outcome

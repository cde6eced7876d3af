"""The three ways to serve a device's requests that are compared: each says which pieces of work are next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.policysim.costs import LARGE, SMALL
from benchmarks.policysim.trace import Request
from serving.engine.policy import FairnessLedger, decide
from serving.engine.work_items import BatchingProfile, Kind, Limits, WorkItem

MAX_RESIDENT = 8
_BATCHING: Mapping[object, BatchingProfile] = {shape.name: shape.batching for shape in (LARGE, SMALL)}


@dataclass(eq=False, slots=True)
class Running:
    """A request on a device, and what is left of it."""

    request: Request
    kind: Kind = "encode"
    left: int = 1
    work_left_s: float = field(init=False)
    served_s: float = 0.0
    resident: bool = False

    def __post_init__(self) -> None:
        self.work_left_s = self.request.solo_s

    @property
    def piece_s(self) -> float:
        """Seconds of the next piece alone."""
        shape = self.request.shape
        if self.kind == "step":
            return shape.call_s(self.request.slots)
        return shape.encode_s if self.kind == "encode" else shape.chunk_s

    def do(self, seconds: float) -> bool:
        """The next piece is done, in a call of so many seconds; whether it was the last."""
        self.work_left_s = max(0.0, self.work_left_s - self.piece_s)
        self.served_s += seconds
        self.left -= 1
        if not self.left and self.kind == "encode":
            self.kind, self.left = "step", self.request.steps
        elif not self.left and self.kind == "step":
            self.kind, self.left = "decode", self.request.shape.chunks
        return not self.left


Jobs = Mapping[int, Running]


class Scheduler(Protocol):
    """One device's: keeps whatever it needs between calls."""

    def next(self, jobs: Jobs, now_s: float) -> list[Running]:
        """What to do next, all of one kind; `jobs` holds every unfinished request, by number, and is not empty."""
        ...


class Policy:
    """serving/engine/policy.py as it is."""

    def __init__(self) -> None:
        self._ledger = FairnessLedger()

    def next(self, jobs: Jobs, now_s: float) -> list[Running]:
        """The policy's decision."""
        limits = Limits(now_s, MAX_RESIDENT, _BATCHING)
        decision, self._ledger = decide([_item(job) for job in jobs.values()], limits, self._ledger)
        assert decision is not None
        for job_id in decision.park:
            jobs[int(job_id)].resident = False
        group = [jobs[int(job_id)] for job_id in decision.job_ids]
        for job in group:
            job.resident = True
        return group


class FirstComeFirstServed:
    """The same batching at every step, joined and left at any time, but in order of arrival alone."""

    def next(self, jobs: Jobs, now_s: float) -> list[Running]:  # noqa: ARG002 - the clock does not matter to it
        """The earliest request's next piece, with whoever of the earliest can share the call."""
        active = [jobs[number] for number in sorted(jobs)[:MAX_RESIDENT]]
        first = active[0]
        if first.kind != "step":
            return [first]
        waiting = [job for job in active if job.request.shape is first.request.shape and job.kind != "decode"]
        group = _fill(waiting)
        return next(([job] for job in group if job.kind == "encode"), group)


class RequestLevel:
    """A batch is formed when the device falls idle and nobody joins it; each result still returns when it is done."""

    def __init__(self) -> None:
        self._batch: list[Running] = []

    def next(self, jobs: Jobs, now_s: float) -> list[Running]:  # noqa: ARG002 - the clock does not matter to it
        """The batch's next pieces: all encodings, then the steps, each decoded as soon as its steps are done."""
        self._batch = [job for job in self._batch if job.left]
        if not self._batch:
            in_order = [jobs[number] for number in sorted(jobs)]
            self._batch = _fill([job for job in in_order if job.request.shape is in_order[0].request.shape])
        for kind in ("encode", "decode"):
            alone = [job for job in self._batch if job.kind == kind]
            if alone:
                return alone[:1]
        return list(self._batch)


def _fill(jobs: list[Running]) -> list[Running]:
    """The first and those of its shape after it that fit into its call, in order."""
    shape = jobs[0].request.shape
    largest = shape.largest
    group: list[Running] = []
    for job in (job for job in jobs if job.request.shape is shape):
        if sum(other.request.slots for other in group) + job.request.slots <= largest or not group:
            group.append(job)
    return group


def _item(job: Running) -> WorkItem:
    request = job.request
    return WorkItem(
        str(request.number),
        job.kind,
        request.shape.name,
        job.piece_s,
        job.work_left_s,
        request.number,
        request.at_s,
        job.served_s,
        request.slots,
        request.tenant,
        priority=request.priority,
        deadline_s=request.deadline_s,
        resident=job.resident,
        begun=job.kind == "decode" or (job.kind == "step" and job.left < request.steps),
    )


SCHEDULERS: Mapping[str, Callable[[], Scheduler]] = {
    "stillmotion": Policy,
    "first come, first served": FirstComeFirstServed,
    "request-level batches": RequestLevel,
}

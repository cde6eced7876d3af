"""Work items, limits and decisions of the scheduling policy: plain values. Imports no torch.

A work item is the next thing to do for one job: encode its picture, make one denoiser evaluation, or decode one chunk.
Times are seconds on the engine's own clock, whichever that is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from model.errors import InvalidRequest
from serving.engine.protocol import Priority

Kind = Literal["encode", "step", "decode"]

_LEVELS: Mapping[Priority, int] = {"high": 0, "normal": 1, "low": 2, "offline": 3}


@dataclass(frozen=True, slots=True)
class WorkItem:
    """The next piece of one job. A job has one at a time: its next step depends on the one before.

    Args:
        job_id: whose.
        kind: `encode` for a job that has no row yet, `step` for one denoiser evaluation, `decode` for one VAE chunk.
        key: its BatchKey, known before the row exists; only items of equal keys share a denoiser call.
        cost_s: this item on its own, by the measured profile.
        work_left_s: of the whole job on an idle engine, this item included.
        arrival: counts requests as they came; unique.
        submitted_s: when the job was submitted.
        served_s: seconds the job has already spent in calls; time in its queue and between its turns does not count.
        batch_slots: of the denoiser's batch that a step takes: 2 with guidance, 1 without.
        tenant, weight: whose share it is charged to, and how large that share is against others'.
        priority: class; it orders the tenant's own work, and `offline` yields to everybody's.
        deadline_s: when the job should be finished, on the same clock; None for whenever.
        resident: whether the job's row is in the active set; one that waits for its encoding is not.
        begun: whether its first step is done. Until then it is a small job of its own: see `urgency`.
        opened: whether some of its chunks are decoded.

    Raises:
        InvalidRequest: a weight or a cost that is not positive, or fewer than 1 batch slot.
    """

    job_id: str
    kind: Kind
    key: Hashable
    cost_s: float
    work_left_s: float
    arrival: int
    submitted_s: float
    served_s: float = 0.0
    batch_slots: int = 1
    tenant: str = ""
    weight: float = 1.0
    priority: Priority = "normal"
    deadline_s: float | None = None
    resident: bool = True
    begun: bool = True
    opened: bool = False

    def __post_init__(self) -> None:
        if not (self.weight > 0 and self.cost_s > 0 and self.batch_slots > 0):
            numbers = f"weight {self.weight}, cost_s {self.cost_s}, batch_slots {self.batch_slots}"
            raise InvalidRequest(f"work items need positive numbers, {self.job_id} has {numbers}")

    @property
    def offline(self) -> bool:
        """Whether it runs in idle capacity only."""
        return self.priority == "offline"

    @property
    def ready(self) -> bool:
        """Whether it could be in a denoiser call now."""
        return self.kind == "step"


@dataclass(frozen=True, slots=True)
class BatchingProfile:
    """What the measured profile says of calls of one BatchKey.

    Args:
        largest: batch slots of a call, at most: the size beyond which nothing is gained or memory does not reach.
        marginal: seconds a row adds to a call that is made anyway, as a part of its seconds alone: 1 where batching
            gains nothing (full size on one GPU), near 0 where a call costs the same for many rows.
    """

    largest: int = 1
    marginal: float = 1.0


ALONE = BatchingProfile()
"""Of a key that was not measured."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a decision.

    Args:
        now_s: the engine's clock.
        max_resident: rows in the active set, at most.
        batching: by BatchKey; keys that are missing are stepped alone.
        ageing_s: a job that waited so long counts as one class higher, and again after as long again, without end.
        patience: inside a class, seconds of remaining work that a second of waiting makes up for. 0 is the shortest
            first whatever the others waited: the least mean, the longest tail.
    """

    now_s: float
    max_resident: int
    batching: Mapping[Hashable, BatchingProfile] = field(default_factory=lambda: MappingProxyType({}))
    ageing_s: float = 60.0
    patience: float = 4.0

    def of(self, item: WorkItem) -> BatchingProfile:
        """What holds for calls with this item."""
        return self.batching.get(item.key, ALONE)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the engine does next.

    Args:
        kind: which of the three.
        job_ids: whose items; one for `encode` and `decode`, the rows of the call for `step`, the leader first. All
            of them are resident from now on.
        park: residents that leave the active set first, so that it stays within its limit; their rows are kept.
        cost_s: how long it should take, by the profile.
    """

    kind: Kind
    job_ids: tuple[str, ...]
    park: tuple[str, ...]
    cost_s: float


Urgency = tuple[int, float, bool, float, int]


def urgency(item: WorkItem, limits: Limits) -> Urgency:
    """Sorts the items of one tenant, the most urgent first: class, deadline, first step, remaining work, arrival.

    A deadline that can still be met orders the class (earliest deadline first meets them all whenever any order does:
    Jackson 1955). One that cannot be met any more asks for nothing, so that it does not take others down with it.
    Work without a deadline to meet ages: every `ageing_s` of waiting lifts it by one class, past the highest too, so
    only finitely many jobs can ever come before it. In its class, whoever has not made a first step makes one, so that
    every caller soon sees a beginning and an estimate; then remaining work counts less what was waited. Of chunks,
    those of a video that is half decoded come first: to take turns there would only make both late.
    """
    level = _LEVELS[item.priority]
    if item.deadline_s is not None and limits.now_s + item.work_left_s <= item.deadline_s:
        return level, item.deadline_s, False, item.work_left_s, item.arrival
    waited = max(limits.now_s - item.submitted_s - item.served_s, 0.0)
    aged = level - int(waited // limits.ageing_s)
    later = not item.opened if item.kind == "decode" else item.begun
    return aged, float("inf"), later, item.work_left_s - limits.patience * waited, item.arrival

"""An engine made of arithmetic: it does what the policy decides and takes exactly the time the profile says.

It keeps a record, and the tests of the policy are about that record.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from serving.engine.policy import FairnessLedger, decide
from serving.engine.protocol import Priority
from serving.engine.work_items import BatchingProfile, Decision, Limits, WorkItem


@dataclass(eq=False)
class Task:
    """A job whose pieces all cost `unit_s`: an encoding (if `encodes`), `steps` steps, `chunks` decode chunks."""

    name: str
    steps: int = 1
    submitted_s: float = 0.0
    tenant: str = ""
    weight: float = 1.0
    priority: Priority = "normal"
    deadline_s: float | None = None
    key: Hashable = "p"
    batch_slots: int = 1
    unit_s: float = 1.0
    encodes: bool = False
    chunks: int = 0
    arrival: int = 0
    resident: bool = True
    begun: bool = True
    opened: bool = False
    served_s: float = 0.0
    finished_s: float | None = None

    def item(self) -> WorkItem:
        return WorkItem(
            job_id=self.name,
            kind="encode" if self.encodes else "step" if self.steps else "decode",
            key=self.key,
            cost_s=self.unit_s,
            work_left_s=(self.encodes + self.steps + self.chunks) * self.unit_s,
            arrival=self.arrival,
            submitted_s=self.submitted_s,
            served_s=self.served_s,
            batch_slots=self.batch_slots,
            tenant=self.tenant,
            weight=self.weight,
            priority=self.priority,
            deadline_s=self.deadline_s,
            resident=self.resident,
            begun=self.begun,
            opened=self.opened,
        )

    def do(self) -> None:
        if self.encodes:
            self.encodes = False
        elif self.steps:
            self.steps -= 1
            self.begun = True
        else:
            self.chunks -= 1
            self.opened = True

    @property
    def over(self) -> bool:
        return not (self.encodes or self.steps or self.chunks)


@dataclass
class Served:
    """One decision, when it began, and the items it was made from."""

    start_s: float
    decision: Decision
    items: dict[str, WorkItem]


@dataclass
class Engine:
    """Serves tasks; every decision is checked against what any decision must keep to."""

    tasks: Sequence[Task]
    batching: Mapping[Hashable, BatchingProfile] = field(default_factory=dict)
    max_resident: int = 1000
    ageing_s: float = 1e9
    patience: float = 0.0
    now_s: float = 0.0
    record: list[Served] = field(default_factory=list)
    ledger: FairnessLedger = field(default_factory=FairnessLedger)

    def __post_init__(self) -> None:
        for arrival, task in enumerate(sorted(self.tasks, key=lambda task: task.submitted_s)):
            task.arrival = arrival
            task.resident = not task.encodes

    def limits(self) -> Limits:
        return Limits(self.now_s, self.max_resident, self.batching, self.ageing_s, self.patience)

    def open(self) -> list[Task]:
        return [task for task in self.tasks if not task.over and task.submitted_s <= self.now_s]

    def run(self, until: Callable[[], bool] = lambda: False) -> Engine:
        """Until all is done, or `until` says so after a decision."""
        while not until():
            tasks = {task.name: task for task in self.open()}
            items = [task.item() for task in tasks.values()]
            decision, self.ledger = decide(items, self.limits(), self.ledger)
            assert (decision is None) == (not items), "idle exactly when there is nothing to do"
            if decision is None:
                coming = [task.submitted_s for task in self.tasks if task.submitted_s > self.now_s]
                if not coming:
                    break
                self.now_s = min(coming)
                continue
            self._check(decision, {item.job_id: item for item in items})
            self._do(decision, tasks)
        return self

    def _check(self, decision: Decision, items: dict[str, WorkItem]) -> None:
        call_items = [items[job_id] for job_id in decision.job_ids]
        assert len(set(decision.job_ids)) == len(call_items) >= 1
        assert {item.kind for item in call_items} == {decision.kind}
        assert decision.kind == "step" or len(call_items) == 1
        assert len({item.key for item in call_items}) == 1
        assert len(call_items) == 1 or _batch_slots(call_items) <= self.limits().of(call_items[0]).largest
        assert all(items[job_id].resident for job_id in decision.park)
        assert not set(decision.park) & set(decision.job_ids)
        self.record.append(Served(self.now_s, decision, items))

    def _do(self, decision: Decision, tasks: dict[str, Task]) -> None:
        before = [task for task in tasks.values() if task.resident]
        for job_id in decision.park:
            tasks[job_id].resident = False
        self.now_s += decision.cost_s
        for job_id in decision.job_ids:
            task = tasks[job_id]
            task.resident = True
            task.served_s += decision.cost_s
            task.do()
            if task.over:
                task.finished_s = self.now_s
        residents = sum(task.resident for task in tasks.values())
        assert residents <= max(self.max_resident, len(before)), "never more residents than there is room for"


def finished(task: Task) -> float:
    assert task.finished_s is not None, f"{task.name} never finished"
    return task.finished_s


def _batch_slots(items: list[WorkItem]) -> int:
    return sum(item.batch_slots for item in items)

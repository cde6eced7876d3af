"""Fair shares: between tenants that always have work, and for who comes late into a flood."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.policy import FairnessLedger, charged, decide, standings
from serving.engine.work_items import BatchingProfile
from tests.unit.serving.engine.policy_support import Engine, Served, Task, finished

ENDLESS = 10**6
"""Steps of a task that is there for the whole test."""

weights = st.sampled_from([0.5, 1.0, 2.0, 3.0])
units = st.sampled_from([0.25, 1.0, 1.5])


def seconds_added(served: Served, batching: dict[str, BatchingProfile]) -> dict[str, float]:
    """What a call cost because of each tenant: the leader makes the call, the others lengthen it."""
    used: dict[str, float] = defaultdict(float)
    for index, job_id in enumerate(served.decision.job_ids):
        item = served.items[job_id]
        used[item.tenant] += item.cost_s * (batching[str(item.key)].marginal if index else 1.0)
    return used


@st.composite
def backlogs(draw: st.DrawFn) -> tuple[list[Task], dict[str, BatchingProfile]]:
    """Two to four tenants with 1 to 6 endless tasks each, of two keys; some wait for their encoding, some decode."""
    batching = {
        key: BatchingProfile(draw(st.integers(2, 6)), draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))) for key in ("p", "q")
    }
    unit = {key: draw(units) for key in batching}
    tasks: list[Task] = []
    for tenant in "abcd"[: draw(st.integers(2, 4))]:
        weight = draw(weights)
        for number in range(draw(st.integers(1, 6))):
            key, batch_slots = draw(st.sampled_from("pq")), draw(st.integers(1, 2))
            task = Task(f"{tenant}{number}", ENDLESS, tenant=tenant, weight=weight, key=key, batch_slots=batch_slots)
            task.unit_s = unit[key] * batch_slots
            task.encodes = draw(st.booleans())
            if number == 0 and draw(st.booleans()):
                task.encodes, task.steps, task.chunks = False, 0, ENDLESS
            tasks.append(task)
    return tasks, batching


@pytest.mark.slow
@given(backlogs(), st.integers(1, 8))
def test_tenants_with_work_never_drift_apart_by_more_than_one_call(
    backlog: tuple[list[Task], dict[str, BatchingProfile]], max_resident: int
) -> None:
    """Seconds used over weight; a call costs what its leader costs alone, and what each rider adds to that."""
    tasks, batching = backlog
    engine = Engine(tasks, batching, max_resident)
    engine.run(until=lambda: len(engine.record) == 60)
    weight = {task.tenant: task.weight for task in tasks}
    used = dict.fromkeys(weight, 0.0)
    longest = max(
        task.unit_s * (1 + batching[str(task.key)].marginal * (batching[str(task.key)].largest / task.batch_slots - 1))
        for task in tasks
    )
    for served in engine.record:
        for tenant, seconds in seconds_added(served, batching).items():
            used[tenant] += seconds
        for one, other in combinations(weight, 2):
            apart = abs(used[one] / weight[one] - used[other] / weight[other])
            assert apart <= longest / min(weight[one], weight[other]) + 1e-6
    assert sum(used.values()) == pytest.approx(engine.now_s), "every second of the device is charged to somebody"


@given(st.integers(1, 40), st.integers(1, 20), st.floats(0, 30), weights, st.sampled_from([0.3, 1.0]))
def test_a_flood_delays_anothers_request_by_no_more_than_one_fair_share(
    flood: int, steps: int, arrives: float, weight: float, marginal: float
) -> None:
    """Alone it takes its steps; with a tenant of weight 1 beside it, its share stretches that by (1 + weight) / weight.

    Beyond that it waits for the call that is running and for one call of the flood's, however long the flood is.
    """
    late = Task("late", steps, arrives, tenant="polite", weight=weight, key="q")
    tasks = [Task(f"f{n}", 50, tenant="flood", priority="high", deadline_s=60.0) for n in range(flood)] + [late]
    batching = {"p": BatchingProfile(4, marginal), "q": BatchingProfile(1)}
    engine = Engine(tasks, batching, max_resident=4, ageing_s=5.0)
    engine.run(until=lambda: late.over)
    call = 1 + 3 * marginal
    assert finished(late) - arrives <= steps * (1 + weight) / weight + 2 * call + 1e-6


def test_who_was_away_neither_saves_up_credit_nor_loses_a_debt_at_once() -> None:
    accounts = charged(standings({}, ["a", "b"]), {"a": 4.0}, {"a": 1.0, "b": 1.0})
    assert accounts == {"a": 4.0, "b": 0.0}
    # a goes away; b alone is served for 3 seconds: a's debt shrinks by as much.
    alone = charged(standings(accounts, ["b"]), {"b": 3.0}, {"b": 1.0})
    assert alone == {"a": 1.0, "b": 0.0}
    # a comes back beside b, with a newcomer who has never been served: level with b.
    assert standings(alone, ["a", "b", "c"]) == {"a": 1.0, "b": 0.0, "c": 0.0}
    # After b was served long enough, nothing is left to remember.
    assert charged(standings(alone, ["b"]), {"b": 5.0}, {"b": 1.0}) == {"b": 0.0}


def test_the_ledger_forgets_tenants_that_owe_nothing() -> None:
    ledger = FairnessLedger()
    for number in range(200):
        engine = Engine([Task("job", 3, tenant=f"tenant-{number}")], ledger=ledger).run()
        ledger = engine.ledger
    assert len(ledger.online) == 1


def test_a_lane_with_a_ledger_of_its_own_leaves_the_shares_of_the_other_alone() -> None:
    """One tenant also decodes all the time, on a lane beside the steps: their shares of the steps stay equal."""
    steps = Engine([Task(f"{tenant}-step", ENDLESS, tenant=tenant) for tenant in "ab"])
    chunks = Engine([Task("b-decode", 0, tenant="b", chunks=ENDLESS)])
    for count in range(1, 101):
        steps.run(until=lambda count=count: len(steps.record) == count)
        chunks.run(until=lambda count=count: len(chunks.record) == count)
    assert sorted(task.steps for task in steps.tasks) == [ENDLESS - 50, ENDLESS - 50]


@given(backlogs(), st.data())
def test_a_pure_function_of_the_set_of_items(
    backlog: tuple[list[Task], dict[str, BatchingProfile]], data: st.DataObject
) -> None:
    tasks, batching = backlog
    engine = Engine(tasks, batching, max_resident=3)
    items = [task.item() for task in tasks]
    first = decide(items, engine.limits(), FairnessLedger())
    assert decide(data.draw(st.permutations(items)), engine.limits(), FairnessLedger()) == first

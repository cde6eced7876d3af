"""Classes and ageing, the offline class, and what is encoded when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.policy import FairnessLedger, decide, order
from serving.engine.protocol import Priority
from serving.engine.work_items import BatchingProfile, Limits
from tests.unit.serving.engine.policy_support import Engine, Task, finished

priorities = st.sampled_from(["high", "normal", "low", "offline"])
online = st.sampled_from(["high", "normal", "low"])


@st.composite
def crowds(draw: st.DrawFn) -> list[Task]:
    """Up to 12 jobs of every sort."""
    return [
        Task(
            f"job-{n}",
            steps=draw(st.integers(1, 6)),
            submitted_s=draw(st.sampled_from([0.0, 0.5, 3.0, 9.0])),
            tenant=draw(st.sampled_from("abc")),
            weight=draw(st.sampled_from([0.5, 1.0, 4.0])),
            priority=draw(priorities),
            deadline_s=draw(st.sampled_from([None, 2.0, 10.0, 40.0])),
            key=draw(st.sampled_from("pq")),
            batch_slots=draw(st.integers(1, 2)),
            encodes=draw(st.booleans()),
            chunks=draw(st.integers(0, 2)),
        )
        for n in range(draw(st.integers(0, 12)))
    ]


batchings = st.fixed_dictionaries(
    {key: st.builds(BatchingProfile, st.integers(1, 5), st.sampled_from([0.0, 0.4, 1.0])) for key in "pq"}
)


@pytest.mark.slow
@given(crowds(), batchings, st.integers(1, 5), st.sampled_from([0.7, 5.0, 1e9]))
def test_everything_finishes_and_the_engine_idles_only_without_work(
    tasks: list[Task], batching: dict[str, BatchingProfile], max_resident: int, ageing_s: float
) -> None:
    for task in tasks:
        if task.submitted_s == 0.0 and not task.encodes:
            task.encodes = len(tasks) > max_resident
    pieces = sum(task.encodes + task.steps + task.chunks for task in tasks)
    engine = Engine(tasks, batching, max_resident, ageing_s).run()
    assert all(task.over for task in tasks)
    assert sum(len(served.decision.job_ids) for served in engine.record) == pieces


@given(crowds(), batchings, st.integers(1, 5), st.booleans())
def test_no_place_stays_empty_while_a_row_of_the_key_waits(
    tasks: list[Task], batching: dict[str, BatchingProfile], max_resident: int, one_tenant: bool
) -> None:
    """With one tenant; and with several where riders are free, since then none gets ahead by riding."""
    for task in tasks:
        task.tenant = "" if one_tenant else task.tenant
        task.weight = {"": 1.0, "a": 0.5, "b": 1.0, "c": 4.0}[task.tenant]
    if not one_tenant:
        batching = {key: replace(known, marginal=0.0) for key, known in batching.items()}
    engine = Engine(tasks, batching, max_resident).run()
    for served in engine.record:
        if served.decision.kind != "step" or len(served.decision.job_ids) == max_resident:
            continue
        call = [served.items[job_id] for job_id in served.decision.job_ids]
        room = batching[str(call[0].key)].largest - sum(item.batch_slots for item in call)
        assert not [
            item
            for item in served.items.values()
            if item.kind in (("step", "encode") if one_tenant else ("step",))
            and item.job_id not in served.decision.job_ids
            and (item.key, item.offline) == (call[0].key, call[0].offline)
            and item.batch_slots <= room
        ]


@given(crowds(), batchings, st.integers(1, 5))
def test_an_offline_job_never_precedes_an_online_one(
    tasks: list[Task], batching: dict[str, BatchingProfile], max_resident: int
) -> None:
    engine = Engine(tasks, batching, max_resident, ageing_s=0.5).run()
    for served in engine.record:
        waiting = [item for item in served.items.values() if not item.offline]
        assert not waiting or not any(served.items[job_id].offline for job_id in served.decision.job_ids)


def test_a_hundred_offline_rows_delay_an_interactive_request_by_one_call_at_most() -> None:
    batch = [Task(f"o{n}", 50, tenant="studio", priority="offline", encodes=True) for n in range(100)]
    request = Task("request", 10, 123.4, encodes=True, chunks=2)
    batching = {"p": BatchingProfile(8, 0.5)}
    engine = Engine([*batch, request], batching, max_resident=8)
    engine.run(until=lambda: request.over)
    longest_call = 1 + 7 * 0.5
    assert finished(request) - 123.4 <= 13 + longest_call
    before, after = (
        [served for served in engine.record if (served.start_s < 123.4) == early] for early in (True, False)
    )
    assert len(before) > 20
    assert len(after) == 13, "nothing but the request's own pieces since it came"


@given(
    online,
    st.integers(1, 12),
    st.sampled_from([None, 30.0, 200.0]),
    st.lists(st.tuples(online, st.integers(1, 3), st.sampled_from([None, 3.0, 20.0])), min_size=1, max_size=4),
    st.sampled_from(["", "other"]),
)
def test_no_job_starves_under_an_endless_stream_of_more_urgent_ones(
    priority: Priority,
    steps: int,
    deadline: float | None,
    rivals: list[tuple[Priority, int, float | None]],
    tenant: str,
) -> None:
    """The rivals ask for more than the whole engine, for ever, sooner due and shorter. The job still finishes."""
    ageing, horizon = 10.0, 500.0
    victim = Task("victim", steps, 20.0, priority=priority, deadline_s=deadline and 20.0 + deadline)
    stream: list[Task] = []
    start = 0.0
    while start < horizon:
        kind, length, slack = rivals[len(stream) % len(rivals)]
        stream.append(
            Task(f"r{len(stream)}", length, start, tenant, priority=kind, deadline_s=slack and start + length + slack)
        )
        start += 0.9 * length
    engine = Engine([victim, *stream], ageing_s=ageing)
    engine.run(until=lambda: victim.over or engine.now_s > horizon)
    assert victim.over


def test_a_class_goes_before_the_next_and_ageing_lifts_what_waits() -> None:
    low = Task("low", 1, 0.0, priority="low")
    stream = [Task(f"normal-{n}", 1, float(n)) for n in range(60)]
    Engine([low, *stream], ageing_s=20.0).run()
    # It is level with the normal class after 20 seconds of waiting, and has the lower arrival there.
    assert finished(low) == 21.0


def test_a_job_does_not_age_while_it_is_served() -> None:
    """Or every long job would outrank the short ones that come after it."""
    long, short = Task("long", 100), Task("short", 4, 80.0)
    Engine([long, short], ageing_s=10.0).run()
    assert finished(short) == 84.0


def test_rows_wait_for_their_encoding_only_where_a_place_is_free() -> None:
    tasks = [Task(f"job-{n}", 3, encodes=True) for n in range(6)]
    record = Engine(tasks, {"p": BatchingProfile(2, 0.5)}, max_resident=6).run().record
    kinds = [served.decision.kind for served in record]
    assert kinds[:5] == ["encode", "encode", "step", "step", "step"]
    assert [len(served.decision.job_ids) for served in record if served.decision.kind == "step"] == [2] * 9


def test_two_places_do_not_go_where_one_is_left() -> None:
    tasks = [Task("leader", 1, batch_slots=2), Task("guided", 2, batch_slots=2), Task("plain", 3)]
    record = Engine(tasks, {"p": BatchingProfile(3, 0.5)}).run().record
    assert record[0].decision.job_ids == ("leader", "plain")


def test_a_row_larger_than_any_call_that_pays_still_runs() -> None:
    assert Engine([Task("guided", 2, batch_slots=2)], {"p": BatchingProfile(1)}).run().now_s == 2.0


@given(crowds())
def test_the_order_of_the_queue_is_a_permutation_led_by_the_next_to_be_served(tasks: list[Task]) -> None:
    for task in tasks:
        task.submitted_s = 0.0
    engine = Engine(tasks)
    items = [task.item() for task in tasks]
    placed = order(items, engine.limits(), FairnessLedger())
    assert sorted(placed) == sorted(item.job_id for item in items)
    offline = [task.priority == "offline" for job_id in placed for task in tasks if task.name == job_id]
    assert offline == sorted(offline)
    decision, _ = decide(items, Limits(0.0, 100), FairnessLedger())
    assert (decision.job_ids[0] if decision else None) == (placed[0] if placed else None)

"""Admission: expectations from measured times, checked against a small simulation of one device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.deadlines import (
    Backlog,
    DeadlineInfeasible,
    PendingWork,
    check_deadline,
    retry_after,
    seconds_until_done,
    seconds_until_place,
)

SECONDS = st.floats(0.1, 100)
WORKS = st.lists(st.builds(PendingWork, SECONDS, st.integers(0, 2)), max_size=8)


def simulated_first_end(needed: list[float], slice_s: float = 0.01) -> float:
    """Evenly shared: everybody gets a slice in turn until one has what it needs."""
    got, now = [0.0] * len(needed), 0.0
    while True:
        for index, need in enumerate(needed):
            got[index] += slice_s
            now += slice_s
            if got[index] >= need:
                return now


@given(st.lists(st.floats(0.5, 5), min_size=1, max_size=4))
def test_a_place_is_free_when_the_first_running_job_ends(needed: list[float]) -> None:
    told = seconds_until_place(Backlog([PendingWork(need) for need in needed]))
    assert told == pytest.approx(simulated_first_end(needed), abs=0.1)


def simulated_end(running: list[PendingWork], waiting: list[PendingWork], own_s: float, priority: int) -> float:
    """One device, one job after another, by class and then by arrival; ours came last."""
    queue = sorted(waiting, key=lambda work: -work.priority)
    now = sum(work.seconds or 0 for work in running)
    for work in queue:
        if work.priority >= priority:
            now += work.seconds or 0
    return now + own_s


@given(WORKS, WORKS, SECONDS, st.integers(0, 2))
def test_a_job_is_done_after_what_lies_before_it(
    running: list[PendingWork], waiting: list[PendingWork], own_s: float, priority: int
) -> None:
    told = seconds_until_done(Backlog(running, waiting), own_s, priority)
    assert told == pytest.approx(simulated_end(running, waiting, own_s, priority))


@given(WORKS, WORKS, SECONDS, st.integers(0, 2), st.floats(0.1, 1000))
def test_a_deadline_is_refused_exactly_when_it_would_be_missed(
    running: list[PendingWork], waiting: list[PendingWork], own_s: float, priority: int, deadline_s: float
) -> None:
    backlog = Backlog(running, waiting)
    expected = seconds_until_done(backlog, own_s, priority)
    assert expected is not None
    if expected > deadline_s:
        with pytest.raises(DeadlineInfeasible) as caught:
            check_deadline(backlog, own_s, priority, deadline_s)
        assert caught.value.param == "deadline_s"
    else:
        check_deadline(backlog, own_s, priority, deadline_s)


def test_no_deadline_and_unknown_times_let_a_job_in() -> None:
    busy = Backlog([PendingWork(1e9)], [PendingWork(1e9)])
    check_deadline(busy, 1.0, 1, None)
    check_deadline(Backlog([PendingWork(None)]), 1.0, 1, 2.0)
    check_deadline(Backlog(), None, 1, 0.001)


def test_what_an_idle_engine_cannot_do_is_refused_whatever_is_unknown_before_it() -> None:
    with pytest.raises(DeadlineInfeasible, match="about 10 s"):
        check_deadline(Backlog([PendingWork(None)]), 9.5, 1, 2.0)


def test_higher_classes_do_not_wait_for_lower_ones() -> None:
    backlog = Backlog(waiting=[PendingWork(50.0, 0), PendingWork(10.0, 1), PendingWork(3.0, 2)])
    assert [seconds_until_done(backlog, 1.0, priority) for priority in (0, 1, 2)] == [64.0, 14.0, 4.0]


def test_retry_after_is_whole_seconds_within_bounds() -> None:
    assert retry_after(Backlog([PendingWork(2.2), PendingWork(9.0)]), 7) == 5
    assert retry_after(Backlog([PendingWork(None)]), 7) == 7
    assert retry_after(Backlog(), 7) == 1
    assert retry_after(Backlog([PendingWork(0.0)]), 7) == 1
    assert retry_after(Backlog([PendingWork(1e9)]), 7) == 3600

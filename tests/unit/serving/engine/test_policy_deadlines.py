"""Inside one tenant and class: deadlines are met if any order meets them, and remaining work decides the rest."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from serving.engine.work_items import BatchingProfile
from tests.unit.serving.engine.policy_support import Engine, Task, finished

unit_jobs = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 6)), min_size=1, max_size=12)
"""(release, seconds until the deadline) of each."""


def feasible(jobs: list[tuple[int, int]], places: int) -> bool:
    """Whether any order at all meets every deadline: a matching of jobs with (second, place) slots."""
    seconds = max(release + slack for release, slack in jobs)
    fits = np.zeros((len(jobs), seconds * places), dtype=np.int8)
    for job, (release, slack) in enumerate(jobs):
        fits[job, release * places : (release + slack) * places] = 1
    return bool((maximum_bipartite_matching(csr_array(fits), perm_type="column") >= 0).all())


@given(unit_jobs, st.integers(1, 3), st.sampled_from([0.5, 3.0, 1e9]))
def test_unit_work_meets_every_deadline_whenever_some_order_does(
    jobs: list[tuple[int, int]], places: int, ageing_s: float
) -> None:
    tasks = [
        Task(f"job-{n}", submitted_s=release, deadline_s=release + slack) for n, (release, slack) in enumerate(jobs)
    ]
    # With marginal 0 a call of several rows takes one second, as the slots of `feasible` do.
    Engine(tasks, {"p": BatchingProfile(places, 0.0)}, ageing_s=ageing_s).run()
    met = all(finished(task) <= (task.deadline_s or 0) for task in tasks)
    assert met == feasible(jobs, places)


def test_a_deadline_beyond_reach_takes_no_other_down_with_it() -> None:
    lost = Task("lost", steps=10, deadline_s=5.0)
    kept = Task("kept", steps=4, deadline_s=6.0)
    Engine([lost, kept]).run()
    assert (finished(kept), finished(lost)) == (4.0, 14.0)


def least_total_latency(jobs: tuple[tuple[int, int], ...]) -> int:
    """The least sum of finishing times over every preemptive order of (release, steps), by trying them all."""

    @cache
    def best(now: int, left: tuple[int, ...]) -> int:
        if not any(left):
            return 0
        here = [n for n, (release, _) in enumerate(jobs) if left[n] and release <= now]
        if not here:
            return best(now + 1, left)
        return min(
            best(now + 1, (*left[:n], left[n] - 1, *left[n + 1 :])) + (now + 1 if left[n] == 1 else 0) for n in here
        )

    return best(0, tuple(steps for _, steps in jobs))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=4))
def test_without_deadlines_the_mean_latency_is_the_least_possible(jobs: list[tuple[int, int]]) -> None:
    tasks = [Task(f"job-{n}", steps, release) for n, (release, steps) in enumerate(jobs)]
    Engine(tasks).run()
    assert sum(map(finished, tasks)) == least_total_latency(tuple(jobs))


def test_a_short_job_behind_a_long_one_finishes_first_even_where_the_active_set_is_full() -> None:
    long = [Task(f"long-{n}", 100, n * 0.5, encodes=True, chunks=2) for n in range(4)]
    short = Task("short", 4, 30.0, encodes=True, chunks=1)
    engine = Engine([*long, short], {"p": BatchingProfile(4, 1.0)}, max_resident=4, ageing_s=200.0).run()
    # The call that was running goes before its encoding; its four steps are shared; it alone is decoded.
    assert finished(short) <= 30.0 + 4 + 1 + 4 * 4 + 1
    assert finished(short) < min(map(finished, long))
    assert sum(len(served.decision.park) for served in engine.record) == 1


def stream_behind(patience: float) -> float:
    """When a job of 12 steps finishes that a full stream of shorter ones comes after."""
    long = Task("long", 12, 0.5, begun=False)
    short = [Task(f"short-{n}", 4, 4.0 * n, begun=False) for n in range(100)]
    Engine([long, *short], patience=patience).run()
    return finished(long)


def test_patience_bounds_how_often_one_is_overtaken() -> None:
    # A short one has 8 seconds less to do; at four to one, two seconds of waiting make up for that. Each that comes
    # meanwhile makes its first step.
    assert stream_behind(patience=4.0) <= 30
    assert stream_behind(patience=0.5) <= 40
    assert stream_behind(patience=0.0) >= 400


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=2, max_size=6))
def test_a_half_decoded_video_is_decoded_to_its_end(jobs: list[tuple[int, int]]) -> None:
    tasks = [Task(f"job-{n}", 0, release, chunks=chunks) for n, (release, chunks) in enumerate(jobs)]
    names = [served.decision.job_ids[0] for served in Engine(tasks, patience=4.0).run().record]
    changes = sum(one != other for one, other in pairwise(names))
    assert changes == len(tasks) - 1


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(2, 9)), min_size=2, max_size=8))
def test_whoever_has_made_no_step_makes_one_first(jobs: list[tuple[int, int]]) -> None:
    tasks = [Task(f"job-{n}", steps, release, encodes=True, begun=False) for n, (release, steps) in enumerate(jobs)]
    for served in Engine(tasks, patience=4.0).run().record:
        chosen = {item.begun for name, item in served.items.items() if name in served.decision.job_ids}
        assert chosen != {True} or all(item.begun for item in served.items.values())

"""The simulator does what it says: the published times, no work lost or done twice, nothing faster than alone."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

DEVICES = 2


@pytest.fixture
def sim() -> Any:
    """Its modules by name."""
    return lambda name: import_module(f"benchmarks.policysim.{name}")


def test_the_large_shape_takes_the_published_seconds(sim: Any) -> None:
    large = sim("costs").LARGE
    assert 25 * large.call_s(2) == pytest.approx(19.10)
    assert large.chunks * large.chunk_s == pytest.approx(3.38)
    assert 25 * large.call_s(2) + large.chunks * large.chunk_s + large.encode_s == pytest.approx(22.64)
    assert 2 * large.call_s(1) / large.call_s(2) == pytest.approx(1.1)


def test_traces_repeat_and_offer_the_load_they_name(sim: Any) -> None:
    trace = sim("trace")
    requests = trace.make_trace(100, 1)
    assert requests == trace.make_trace(100, 1) != trace.make_trace(100, 2)
    assert [request.number for request in requests] == list(range(len(requests)))
    load = sum(request.solo_s for request in requests) / (100 * trace.HORIZON_S)
    assert 0.8 < load < 1.1
    flood = [request.at_s / trace.HORIZON_S for request in requests if request.tenant == trace.FLOOD]
    assert trace.FLOOD_AT[0] <= min(flood) <= max(flood) <= trace.FLOOD_AT[1]


@pytest.mark.parametrize("name", ["stillmotion", "first come, first served", "request-level batches"])
def test_every_scheduler_finishes_all_and_nothing_is_faster_than_alone(sim: Any, name: str) -> None:
    few = [request for request in sim("trace").make_trace(DEVICES, 3) if request.steps <= 30]
    trace = [replace(request, number=number) for number, request in enumerate(few)]
    outcome = sim("devices").serve(trace, DEVICES, sim("schedulers").SCHEDULERS[name])
    latency = np.array(outcome.finished_s) - [request.at_s for request in trace]
    assert (latency >= np.array([request.solo_s for request in trace]) - 1e-6).all()
    busy = sum(sum(window.values()) for window in outcome.service.values())
    alone = sum(request.solo_s for request in trace)
    assert busy <= alone + 1e-6, "batching never costs more than one by one"
    assert busy >= alone / 1.7, "and gains no more than eight places of the small shape do"
    assert set(outcome.device) == set(range(DEVICES))


def test_request_level_batches_let_nobody_join(sim: Any) -> None:
    trace = sim("trace").make_trace(1, 5)
    small = [request for request in trace if request.shape.largest > 2][:2]
    schedulers = sim("schedulers")
    first, late = (schedulers.Running(request) for request in small)
    batches = schedulers.RequestLevel()
    assert batches.next({first.request.number: first}, 0.0) == [first]
    first.do(1.0)
    both = {job.request.number: job for job in (first, late)}
    assert batches.next(both, 1.0) == [first]
    joined = schedulers.FirstComeFirstServed().next(both, 1.0)
    assert joined == [late], "first come, first served encodes it, to share the next call"
    late.do(1.0)
    assert set(schedulers.FirstComeFirstServed().next(both, 2.0)) == {first, late}


def test_jains_index_counts_who_got_nothing_through_a_whole_window(sim: Any) -> None:
    devices, measures = sim("devices"), sim("measures")
    drawn = sim("trace").make_trace(1, 1)
    trace = [replace(drawn[n], number=n, tenant=tenant, at_s=0.0) for n, tenant in enumerate(("t1", "t2"))]
    window = devices.WINDOW_S
    service = {(0, 0): {"t1": window, "t2": 0.0}, (0, 1): {"t1": 3.0, "t2": 3.0}}
    outcome = devices.Outcome([2.5 * window, 2.5 * window], [0, 0], service)
    assert measures.jain(trace, outcome).tolist() == pytest.approx([0.5, 1.0])

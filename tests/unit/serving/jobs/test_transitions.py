"""The transition table as a graph, and the store driven at random against a model of it written out here."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from stillmotion.types import JobOutput

from serving.engine.protocol import Share
from serving.jobs.database import Database
from serving.jobs.errors import Conflict, IllegalTransition, LeaseLost
from serving.jobs.leases import Leases
from serving.jobs.records import LeasedJob, NewJob, ProgressUpdate, Success
from serving.jobs.store import JobStore
from serving.jobs.transitions import STATUSES, TRANSITIONS, check_transition, is_terminal
from tests.support import shared_tables as shared_tables

# Written out a second time, on purpose: the table's own words are not asked.
LEGAL = {
    ("queued", "in_progress"),
    ("queued", "cancelled"),
    ("queued", "expired"),
    ("in_progress", "completed"),
    ("in_progress", "failed"),
    ("in_progress", "cancelled"),
    ("in_progress", "expired"),
    ("in_progress", "queued"),
}


def test_the_table_is_exactly_this() -> None:
    assert {(before, after) for before, allowed in TRANSITIONS.items() for after in allowed} == LEGAL
    assert set(TRANSITIONS) == set(STATUSES)


@pytest.mark.parametrize("before", STATUSES)
@pytest.mark.parametrize("after", STATUSES)
def test_check_agrees(before: str, after: str) -> None:
    if (before, after) in LEGAL:
        check_transition("j", before, after)  # type: ignore[arg-type]
    else:
        with pytest.raises(IllegalTransition, match=f"{before}.*{after}"):
            check_transition("j", before, after)  # type: ignore[arg-type]


def test_an_end_is_an_end_and_can_be_reached_from_anywhere() -> None:
    for status in STATUSES:
        reached, todo = {status}, [status]
        while todo:
            new = TRANSITIONS[todo.pop()] - reached
            reached |= new
            todo += new
        assert is_terminal(status) == (reached == {status})
        assert any(map(is_terminal, reached))


def new_job(job_id: str, priority: str = "normal") -> NewJob:
    return NewJob(
        id=job_id,
        task="image-to-video",
        model="m",
        model_version="1",
        seed=2**63 - 1,
        params={"fps": 7},
        total_steps=4,
        output_format="mp4",
        priority=priority,  # type: ignore[arg-type]
        metadata={},
        body_hash="h",
    )


def leased(job_id: str, attempt: int = 1) -> LeasedJob:
    """What a server that never had the lease might claim to have."""
    return LeasedJob(job_id, "image-to-video", "m", {}, "mp4", Share(), attempt)


OUTPUT = JobOutput(url="u", sha256="s", frames_sha256="f", bytes=1, width=8, height=8, num_frames=1, fps=7)


class StoreMachine(RuleBasedStateMachine):
    """Whatever is called in whatever order: a job's history is a legal path, and its events are without a gap."""

    jobs: Bundle[str] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = Database(f"sqlite:///{Path(self.folder.name)}/jobs.db")
        self.store = JobStore(self.database)
        self.leases = Leases(self.database, "this")
        self.running: dict[str, LeasedJob] = {}
        self.status: dict[str, str] = {}
        self.order: list[tuple[int, int, str]] = []

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    @rule(target=jobs, priority=st.sampled_from(["low", "normal", "high"]))
    def create(self, priority: str) -> str:
        job_id = f"job_{len(self.order)}"
        self.store.create(new_job(job_id, priority), queue_limit=1000)
        self.status[job_id] = "queued"
        self.order.append((-["low", "normal", "high"].index(priority), len(self.order), job_id))
        return job_id

    @rule()
    def lease(self) -> None:
        waiting = [job_id for *_, job_id in sorted(self.order) if self.status.get(job_id) == "queued"]
        leased = self.leases.acquire()
        assert (leased.id if leased else None) == (waiting[0] if waiting else None)
        if leased:
            self.status[leased.id] = "in_progress"
            self.running[leased.id] = leased

    @rule(job_id=jobs, end=st.sampled_from(["completed", "failed", "cancelled"]))
    def end(self, job_id: str, end: str) -> None:
        job = self.running.get(job_id, leased(job_id))
        act = {
            "completed": lambda: self.leases.complete(job, Success(OUTPUT, {})),
            "failed": lambda: self.leases.fail(job, "code", "message"),
            "cancelled": lambda: self.leases.stopped(job, 2, 0.5),
        }[end]
        legal = self.status.get(job_id) == "in_progress"
        try:
            act()
        except LeaseLost:
            assert not legal
        else:
            assert legal
            self.status[job_id] = end

    @rule(job_id=jobs, step=st.integers(1, 4))
    def advance(self, job_id: str, step: int) -> None:
        try:
            job = self.running.get(job_id, leased(job_id))
            self.leases.advance(job, "step", ProgressUpdate("denoise", 20 * step, step))
        except LeaseLost:
            assert self.status.get(job_id) != "in_progress"
        else:
            assert self.status[job_id] == "in_progress"

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        if job_id in self.status:
            after = self.store.cancel(job_id).status
            assert after == ("cancelled" if self.status[job_id] == "queued" else self.status[job_id])
            self.status[job_id] = after

    @rule(job_id=consumes(jobs))
    def delete(self, job_id: str) -> None:
        try:
            self.store.delete(job_id)
        except Conflict:
            assert self.status[job_id] == "in_progress"
        else:
            assert self.status.pop(job_id) != "in_progress"

    @rule()
    def restart(self) -> None:
        gone = Leases(self.database, "next", clock=lambda: time.time() + 3600)
        for job in gone.reclaim():
            assert self.status[job.id] == "in_progress"
            self.status[job.id] = job.status
        assert "in_progress" not in self.status.values()

    @rule(job_id=jobs)
    def release(self, job_id: str) -> None:
        if self.status.get(job_id) == "in_progress":
            self.status[job_id] = self.leases.release(self.running[job_id]).status

    @invariant()
    def histories_are_legal(self) -> None:
        assert self.store.ids() == set(self.status)
        for job_id, status in self.status.items():
            events, ended = self.store.events_after(job_id, 0)
            assert ended == (status not in ("queued", "in_progress"))
            assert [event.id for event in events] == list(range(1, len(events) + 1))
            path = [event.job.status for event in events]
            assert (path[0], path[-1]) == ("queued", status)
            assert all(before == after or (before, after) in LEGAL for before, after in pairwise(path))
            assert self.store.get(job_id).status == status


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

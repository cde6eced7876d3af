"""Leases: one holder a job, in order of class and fair share, and nothing counts that a former holder says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from serving.jobs.admission import IdempotentRequest
from serving.jobs.database import Database
from serving.jobs.errors import Conflict, JobNotFound, LeaseLost, QueueFull, QuotaFull
from serving.jobs.leases import Leases
from serving.jobs.records import Lifetimes, ProgressUpdate, Success
from serving.jobs.store import JobStore
from tests.support import shared_tables as shared_tables
from tests.unit.serving.jobs.test_transitions import OUTPUT, new_job


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    yield database
    database.close()


@pytest.fixture
def store(database: Database, clock: Clock) -> JobStore:
    return JobStore(database, clock)


def servers(database: Database, clock: Clock) -> tuple[Leases, Leases]:
    terms = Lifetimes(lease_s=10)
    return Leases(database, "one", clock, terms), Leases(database, "two", clock, terms)


def test_a_lease_lasts_while_its_server_is_heard_of(database: Database, store: JobStore, clock: Clock) -> None:
    one, two = servers(database, clock)
    store.create(new_job("job_1"), 10)
    job = one.acquire()
    assert job
    for _ in range(5):
        clock.now += 8
        assert one.heartbeat([job]).lost == frozenset()
        assert two.reclaim() == []
    clock.now += 11
    assert [job.status for job in two.reclaim()] == ["queued"]
    assert one.heartbeat([job]).lost == {"job_1"}


def test_what_a_former_holder_says_does_not_count(database: Database, store: JobStore, clock: Clock) -> None:
    one, two = servers(database, clock)
    store.create(new_job("job_1"), 10)
    before = one.acquire()
    clock.now += 11
    two.reclaim()
    now = two.acquire()
    assert before and now
    assert (before.attempt, now.attempt) == (1, 2)
    for act in (
        lambda: one.advance(before, "step", ProgressUpdate("denoise", 50, 2)),
        lambda: one.complete(before, Success(OUTPUT, {})),
        lambda: one.fail(before, "code", "message"),
        lambda: one.stopped(before, 1, 0.1),
        lambda: one.release(before),
        lambda: two.complete(before, Success(OUTPUT, {})),  # the right server, the wrong lease
    ):
        with pytest.raises(LeaseLost):
            act()
    assert two.complete(now, Success(OUTPUT, {})).status == "completed"
    with pytest.raises(LeaseLost):
        two.complete(now, Success(OUTPUT, {}))
    events, _ = store.events_after("job_1", 0)
    assert [event.event for event in events].count("completed") == 1


def test_a_caller_who_asked_for_an_end_gets_it_also_after_a_crash(
    database: Database, store: JobStore, clock: Clock
) -> None:
    one, two = servers(database, clock)
    store.create(new_job("job_1"), 10)
    job = one.acquire()
    assert job
    store.cancel("job_1")
    assert one.heartbeat([job]).to_stop == {"job_1"}
    clock.now += 11
    assert [job.status for job in two.reclaim()] == ["cancelled"]


def test_a_job_that_takes_its_servers_down_fails_in_the_end(database: Database, store: JobStore, clock: Clock) -> None:
    leases = Leases(database, "one", clock, Lifetimes(lease_s=10, attempts=3))
    store.create(new_job("job_1"), 10)
    statuses = []
    for _ in range(3):
        assert leases.acquire()
        clock.now += 11
        statuses += [job.status for job in leases.reclaim()]
    assert statuses == ["queued", "queued", "failed"]
    failed = store.get("job_1")
    assert failed.error is not None
    assert (failed.error.code, leases.acquire()) == ("interrupted", None)


def test_owners_take_turns_by_weight_and_classes_come_first(database: Database, store: JobStore, clock: Clock) -> None:
    one, _ = servers(database, clock)
    for number in range(6):
        store.create(replace(new_job(f"job_a{number}"), owner="a"), 100)
    for number in range(4):
        store.create(replace(new_job(f"job_b{number}"), owner="b", weight=2.0), 100)
    store.create(replace(new_job("job_c", "low"), owner="c"), 100)
    store.create(replace(new_job("job_d", "high"), owner="a"), 100)
    taken = [one.acquire() for _ in range(12)]
    names = [job.id for job in taken if job]
    assert names[0] == "job_d"
    assert names[-1] == "job_c"
    owners = [name[4] for name in names[1:7]]
    assert owners.count("b") == 4  # twice the weight, and the other had one already
    assert one.acquire() is None


def test_a_job_past_its_time_is_not_begun(database: Database, store: JobStore, clock: Clock) -> None:
    one, _ = servers(database, clock)
    store.create(replace(new_job("job_1"), deadline_s=5), 10)
    clock.now += 6
    assert one.acquire() is None


def test_anothers_job_is_not_there(store: JobStore) -> None:
    store.create(replace(new_job("job_1"), owner="a", idempotency_key="k"), 10)
    for act in (
        lambda: store.get("job_1", "b"),
        lambda: store.get("job_1"),
        lambda: store.cancel("job_1", "b"),
        lambda: store.delete("job_1", "b"),
        lambda: store.events_after("job_1", 0, "b"),
        lambda: store.file("job_1", "video", "b"),
        lambda: store.page(None, "job_1", 10, "asc", "b"),
    ):
        with pytest.raises(JobNotFound):
            act()
    assert store.page(None, None, 10, "asc", "b").data == []
    assert [job.id for job in store.page(None, None, 10, "asc", "a").data] == ["job_1"]
    assert store.admit("k", "other", 10, "b") is None  # a key is its owner's


def test_limits_are_by_queue_and_by_owner(store: JobStore) -> None:
    store.create(replace(new_job("job_1"), owner="a"), 3, quota=1)
    with pytest.raises(QuotaFull, match="your limit"):
        store.create(replace(new_job("job_2"), owner="a"), 3, quota=1)
    store.create(replace(new_job("job_3"), owner="b"), 3, quota=1)
    store.create(replace(new_job("job_4", "offline"), owner="c"), 3)
    store.create(replace(new_job("job_5"), owner="c"), 3)  # the offline one does not count
    with pytest.raises(QueueFull, match="3 jobs are waiting"):
        store.create(replace(new_job("job_6"), owner="c"), 3)
    store.create(replace(new_job("job_7"), owner="d"), 3)  # a full queue keeps a share for each key


def test_a_key_holds_for_every_kind_of_request(store: JobStore) -> None:
    store.create(replace(new_job("job_1"), idempotency_key="k"), 10)
    store.create(new_job("job_2"), 10)
    with pytest.raises(Conflict) as caught:
        store.cancel("job_2", "", IdempotentRequest("", "k", "cancel job_2"))
    assert caught.value.code == "idempotency_mismatch"
    assert store.get("job_2").status == "queued"
    again = IdempotentRequest("", "stop", "cancel job_2")
    assert store.cancel("job_2", "", again) == store.cancel("job_2", "", again)
    store.delete("job_1")
    assert store.admit("k", "other", 10) is None  # it went with what it had made

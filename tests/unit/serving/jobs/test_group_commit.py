"""Submissions that share a transaction: each is judged as if it had come alone, and none suffers for another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stillmotion.types import Job

from model.errors import StillmotionError
from serving.jobs.admission import AdmissionRequest
from serving.jobs.database import Database
from serving.jobs.errors import Conflict, QueueFull, QuotaFull
from serving.jobs.group_commit import GroupCommit
from serving.jobs.records import NewJob
from serving.jobs.store import JobStore
from tests.support import shared_tables as shared_tables
from tests.unit.serving.jobs.test_transitions import new_job


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    yield JobStore(database)
    database.close()


def outcomes(store: JobStore, asked: Sequence[AdmissionRequest], limit: int = 100) -> list[Any]:
    """The job's id and whether it is new, or the kind of error."""
    return [
        type(one) if isinstance(one, StillmotionError) else (one[0].id, one[1])
        for one in store.create_all(asked, limit)
    ]


def test_those_let_in_first_count_for_those_behind_them(store: JobStore) -> None:
    asked = [AdmissionRequest(new_job(f"job_{number}")) for number in range(4)]
    assert outcomes(store, asked, 3) == [("job_0", True), ("job_1", True), ("job_2", True), QueueFull]
    assert store.ids() == {"job_0", "job_1", "job_2"}


def test_an_owners_quota_holds_within_one_transaction(store: JobStore) -> None:
    mine = [AdmissionRequest(replace(new_job(f"job_{number}"), owner="a"), quota=2) for number in range(3)]
    other = AdmissionRequest(replace(new_job("job_b"), owner="b"), quota=1)
    assert outcomes(store, [*mine, other]) == [("job_0", True), ("job_1", True), QuotaFull, ("job_b", True)]


def test_the_same_key_twice_in_one_transaction_makes_one_job(store: JobStore) -> None:
    first, again = (replace(new_job(name), idempotency_key="k") for name in ("job_1", "job_2"))
    other = replace(new_job("job_3"), idempotency_key="k", body_hash="another")
    assert outcomes(store, [AdmissionRequest(first), AdmissionRequest(again), AdmissionRequest(other)]) == [
        ("job_1", True),
        ("job_1", False),
        Conflict,
    ]
    assert outcomes(store, [AdmissionRequest(replace(again, id="job_4"))]) == [("job_1", False)]


def test_places_are_told_as_one_by_one(store: JobStore, tmp_path: Path) -> None:
    """The same jobs in one transaction, and in one each, have the same places and the same first events."""
    jobs = [new_job(f"job_{n}", priority) for n, priority in enumerate(("normal", "low", "high", "low", "offline"))]
    together = [
        one[0] for one in store.create_all([AdmissionRequest(job) for job in jobs], 100) if isinstance(one, tuple)
    ]
    database = Database(f"sqlite:///{tmp_path}/alone.db")
    alone = [JobStore(database).create(job, 100)[0] for job in jobs]
    database.close()
    assert [job.queue_position for job in together] == [job.queue_position for job in alone] == [0, 1, 0, 3, 4]
    for job in together:
        events, _ = store.events_after(job.id, 0)
        assert [(event.id, event.event, event.job) for event in events] == [(1, "queued", job)]


async def test_many_at_once_share_transactions_and_each_hears_of_its_own(tmp_path: Path) -> None:
    class Counting(JobStore):
        transactions = 0

        def create_all(
            self, asked: Sequence[AdmissionRequest], queue_limit: int
        ) -> list[tuple[Job, bool] | StillmotionError]:
            self.transactions += 1
            return super().create_all(asked, queue_limit)

    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    counting = Counting(database)
    admissions = GroupCommit(counting, 50)
    made = await asyncio.gather(
        *(admissions.create(new_job(f"job_{number}"), None) for number in range(60)), return_exceptions=True
    )
    names = [one[0].id for one in made if isinstance(one, tuple)]
    assert names == [f"job_{number}" for number in range(50)]
    assert [type(one) for one in made[50:]] == [QueueFull] * 10
    assert counting.transactions < 10
    with pytest.raises(QueueFull):
        await admissions.admit(new_job("job_x"), None)
    database.close()


async def test_one_that_cannot_be_stored_takes_none_with_it(store: JobStore) -> None:
    admissions = GroupCommit(store, 100)

    def job(number: int) -> NewJob:
        spoilt = {"params": {"fps": object()}} if number == 3 else {}
        return replace(new_job(f"job_{number}"), **spoilt)  # type: ignore[arg-type]

    made = await asyncio.gather(*(admissions.create(job(number), None) for number in range(6)), return_exceptions=True)
    assert [isinstance(one, tuple) for one in made] == [True, True, True, False, True, True]
    assert store.ids() == {f"job_{number}" for number in range(6) if number != 3}


async def test_a_caller_that_goes_away_leaves_a_whole_job_or_none(store: JobStore) -> None:
    admissions = GroupCommit(store, 100)
    task = asyncio.create_task(admissions.create(new_job("job_1"), None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.ids() == {"job_1"}
    assert (await admissions.create(new_job("job_2"), None))[1]

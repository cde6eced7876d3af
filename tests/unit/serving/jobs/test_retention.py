"""Time and jobs: what waits too long expires, what is old goes with its files, what is young stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving.jobs.artifacts import Artifacts
from serving.jobs.batches import BatchStore, NewBatch
from serving.jobs.database import Database
from serving.jobs.errors import BatchNotFound, JobNotFound
from serving.jobs.leases import Leases
from serving.jobs.notifier import Notifier
from serving.jobs.records import BatchPlace, Lifetimes, Success, WebhookTarget
from serving.jobs.retention import Janitor, Retention
from serving.jobs.store import JobStore
from serving.jobs.webhooks import Outbox
from tests.support import shared_tables as shared_tables
from tests.unit.serving.jobs.test_leases import Clock
from tests.unit.serving.jobs.test_transitions import OUTPUT, new_job

TERMS = Lifetimes(waiting_s=100, kept_s=1000)


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
    return JobStore(database, clock, TERMS)


@pytest.fixture
def retention(database: Database, clock: Clock) -> Retention:
    return Retention(database, clock, TERMS)


def test_a_job_says_when_it_goes(store: JobStore, database: Database, clock: Clock) -> None:
    job, _ = store.create(new_job("job_1"), 10)
    assert job.expires_at == clock.now + 100
    hurried, _ = store.create(replace(new_job("job_2"), deadline_s=7), 10)
    assert hurried.expires_at == clock.now + 7
    leases = Leases(database, "one", clock, TERMS)
    leased = leases.acquire()
    assert leased
    clock.now += 50
    assert leases.complete(leased, Success(OUTPUT, {})).expires_at == clock.now + 1000


def test_only_what_waits_expires_and_its_webhook_is_told(
    store: JobStore, database: Database, retention: Retention, clock: Clock
) -> None:
    for number in range(3):
        hook = WebhookTarget("https://example.org/hook", "whsec_YQ==")
        store.create(replace(new_job(f"job_{number}"), webhook=hook), 10)
    leases = Leases(database, "one", clock, TERMS)
    running = leases.acquire()
    assert running
    assert retention.expire() == []
    clock.now += 101
    assert sorted(job.id for job in retention.expire()) == sorted({f"job_{n}" for n in range(3)} - {running.id})
    assert retention.expire() == []
    assert store.get(running.id).status == "in_progress"
    expired = store.get("job_2")
    assert (expired.status, expired.error and expired.error.code) == ("expired", "expired")
    assert [event.event for event in store.events_after("job_2", 0)[0]] == ["queued", "expired"]
    outbox = Outbox(database, clock)
    messages = outbox.claim([due.id for due in outbox.due()])
    assert [b'"type":"job.expired"' in message.body for message in messages] == [True, True]


async def test_rows_and_files_go_together(
    tmp_path: Path, store: JobStore, retention: Retention, database: Database, clock: Clock
) -> None:
    artifacts = Artifacts.open(str(tmp_path / "artifacts"))
    for name in ("job_old", "job_young"):
        artifacts.write(name, "input.png", b"x", "image/png")
        store.create(replace(new_job(name), idempotency_key=name), 10)
    store.cancel("job_old")
    clock.now += 600
    store.cancel("job_young")
    clock.now += 500
    janitor = Janitor(retention, store, artifacts, Notifier())
    await janitor.sweep()
    with pytest.raises(JobNotFound):
        store.get("job_old")
    assert store.get("job_young").status == "cancelled"
    assert sorted(path.name for path in (tmp_path / "artifacts").iterdir()) == ["job_young"]
    assert store.admit("job_old", "anything", 10) is None  # the key went too


def test_without_an_end_to_keeping_nothing_goes(database: Database, clock: Clock) -> None:
    terms = Lifetimes(kept_s=None)
    store = JobStore(database, clock, terms)
    store.create(new_job("job_1"), 10)
    assert store.cancel("job_1").expires_at is None
    clock.now += 1e9
    assert Retention(database, clock, terms).remove_ended() == []


def test_a_batch_goes_with_its_last_row(
    store: JobStore, retention: Retention, database: Database, clock: Clock
) -> None:
    batches = BatchStore(database, clock, TERMS)
    jobs = [replace(new_job(f"job_{n}", "offline"), batch=BatchPlace("batch_1", n, str(n))) for n in range(2)]
    batches.create(NewBatch(id="batch_1", owner="", jobs=jobs), 10)
    store.cancel("job_0")
    clock.now += 1001
    assert retention.remove_ended() == ["job_0"]
    assert batches.get("batch_1").counts.queued == 1
    store.cancel("job_1")
    clock.now += 1001
    assert retention.remove_ended() == ["job_1"]
    with pytest.raises(BatchNotFound):
        batches.get("batch_1")

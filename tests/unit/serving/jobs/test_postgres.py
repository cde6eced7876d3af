"""The store on Postgres, where several servers share one queue: the same contract as on SQLite, and no job taken twice.

A real server from the `pgserver` wheel, on a socket in a folder of its own.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from serving.jobs.database import Database
from serving.jobs.errors import Conflict, LeaseLost, QueueFull
from serving.jobs.leases import Leases
from serving.jobs.records import Lifetimes, ProgressUpdate, Success
from serving.jobs.retention import Retention
from serving.jobs.store import JobStore
from serving.jobs.tables import Base
from serving.keys import Caller, KeyRing, KeyStore, SharedBuckets
from tests.unit.serving.jobs.test_transitions import OUTPUT, new_job

pgserver = pytest.importorskip("pgserver", reason="needs the pgserver wheel")
pytest.importorskip("psycopg", reason="needs the postgres extra")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # the server alone starts in seconds


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has a length limit
    server = pgserver.get_server(folder)
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    with database.write() as session:
        names = ", ".join(Base.metadata.tables)
        session.execute(text(f"TRUNCATE {names} CASCADE"))
    yield database
    database.close()


def test_migrations_make_exactly_the_tables_whoever_comes_first(url: str) -> None:
    opened: list[Database] = []
    threads = [threading.Thread(target=lambda: opened.append(Database(url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 3
    with opened[0].write() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), Base.metadata) == []
    for database in opened:
        database.close()


def test_two_gateways_count_a_key_s_rate_together(url: str, database: Database) -> None:
    """Twenty a minute and six gateways at once: twenty come in, not a hundred and twenty."""
    key, _ = KeyStore(database).create("shared", per_minute=20)
    waits: list[float] = []

    def submit() -> None:
        mine = Database(url)
        waits.extend(SharedBuckets(mine).take(key.id, 20) for _ in range(10))
        mine.close()

    threads = [threading.Thread(target=submit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One more comes back every three seconds that this took on a busy machine.
    came_in = waits.count(0.0)
    assert 20 <= came_in < 60
    assert all(0 < wait <= 3 for wait in waits if wait)
    SharedBuckets(database).charge(key.id, 20, 100)
    assert SharedBuckets(database).take(key.id, 20) > 3 * 90


async def test_a_gateway_on_postgres_asks_the_database(database: Database) -> None:
    key, _ = KeyStore(database).create("shared", per_minute=2)
    rings = [KeyRing(KeyStore(database), shared=SharedBuckets(database)) for _ in range(2)]
    assert [await ring.take(Caller(key)) for ring in rings] == [0, 0]
    assert await rings[0].take(Caller(key)) > 0
    assert await rings[1].take(Caller()) == 0
    await rings[1].charge(Caller(key), 20)
    assert await rings[0].take(Caller(key)) > 300


def test_no_job_is_taken_twice_and_none_is_left(url: str, database: Database) -> None:
    store = JobStore(database)
    for number in range(40):
        store.create(new_job(f"job_{number}"), 100)
    taken: list[str] = []

    def take(name: str) -> None:
        mine = Database(url)
        leases = Leases(mine, name)
        while (job := leases.acquire()) is not None:
            leases.advance(job, "step", ProgressUpdate("denoise", 20, 1))
            taken.append(leases.complete(job, Success(OUTPUT, {})).id)
        mine.close()

    threads = [threading.Thread(target=take, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # SKIP LOCKED may end one thread early while another holds the last row; none is taken twice.
    assert sorted(taken) == sorted({*taken})
    assert {job_id for job_id in store.ids() if store.get(job_id).status == "completed"} == store.ids()


def test_a_lost_lease_is_lost(database: Database) -> None:
    store, clock = JobStore(database), [1000.0]
    one, two = (Leases(database, name, lambda: clock[0], Lifetimes(lease_s=10)) for name in ("one", "two"))
    store.create(replace(new_job("job_1"), deadline_s=None), 10)
    clock[0] = store.get("job_1").created_at + 1
    before = one.acquire()
    assert before
    assert one.heartbeat([before]).lost == frozenset()
    clock[0] += 11
    assert [job.status for job in two.reclaim()] == ["queued"]
    now = two.acquire()
    assert now and now.attempt == 2
    with pytest.raises(LeaseLost):
        one.complete(before, Success(OUTPUT, {}))
    assert two.complete(now, Success(OUTPUT, {})).status == "completed"
    assert [event.id for event in store.events_after("job_1", 0)[0]] == [1, 2, 3, 4, 5]


def test_limits_and_keys_hold_when_many_come_at_once(url: str, database: Database) -> None:
    made: list[bool] = []
    refused: list[str] = []

    def submit(number: int) -> None:
        mine = Database(url)
        try:
            new = replace(new_job(f"job_{number}"), idempotency_key=f"key {number % 8}")
            made.append(JobStore(mine).create(new, queue_limit=5)[1])
        except (QueueFull, Conflict) as error:
            refused.append(error.code)
        mine.close()

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(made) == 5
    assert set(refused) == {"queue_full"}


def test_what_is_over_is_swept(database: Database) -> None:
    store = JobStore(database, terms=Lifetimes(kept_s=0))
    store.create(replace(new_job("job_1"), deadline_s=-1.0), 10)
    retention = Retention(database, terms=Lifetimes(kept_s=0))
    assert [job.status for job in retention.expire()] == ["expired"]
    assert retention.remove_ended() == ["job_1"]
    assert store.ids() == set()

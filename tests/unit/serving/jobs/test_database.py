"""The database: its tables are those the code has, its transactions hold, and errors say what to do."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, func, inspect, select, text

from model.errors import InvalidRequest, StorageFull
from serving.jobs.database import MIGRATIONS, Database
from serving.jobs.leases import Leases
from serving.jobs.store import JobStore
from serving.jobs.tables import Base, EventRow, JobRow
from tests.support import shared_tables
from tests.unit.serving.jobs.test_transitions import new_job


@pytest.fixture(autouse=True)
def migrating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here every database is migrated."""
    monkeypatch.setattr(Database, "_migrate", shared_tables.MIGRATE)


def test_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new folder/jobs.db")
    with database.write() as session:
        differences = compare_metadata(MigrationContext.configure(session.connection()), Base.metadata)
        assert differences == []
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert set(inspect(session.connection()).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    database.close()


def test_an_older_database_is_brought_up_to_date_with_all_it_holds(tmp_path: Path) -> None:
    """Tables of the first version, with a job, its events and its idempotency key."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO jobs (id, task, status, phase, progress, step, total_steps, created_at, model, "
                "model_version, seed, params, output_format, priority, metadata, timings, cancel_requested, files, "
                "idempotency_key, body_hash, last_event) VALUES ('job_1', 'image-to-video', 'in_progress', 'denoise', "
                "5, 1, 4, 1.0, 'm', '1', 1, '{}', 'mp4', 1, '{}', '{}', 0, '{}', 'key', 'hash', 2)"
            )
        )
        for number in (1, 2):
            connection.execute(
                text(f"INSERT INTO job_events (job_id, id, event, job) VALUES ('job_1', {number}, 'step', '{{}}')")
            )
    engine.dispose()
    database = Database(url)
    store = JobStore(database)
    known = store.admit("key", "hash", 10)
    assert known is not None
    assert known.id == "job_1"
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(EventRow)) == 2
    # What the older version left running has no lease: it goes back into the queue.
    assert [job.id for job in Leases(database, "one").reclaim()] == ["job_1"]
    store.create(new_job("job_2"), 10)
    assert [job.id for job in store.page(None, None, 9, "asc").data] == ["job_1", "job_2"]
    database.close()


def test_opening_again_keeps_everything(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    database = Database(url)
    job, _ = JobStore(database).create(new_job("job_1"), 10)
    database.close()
    database = Database(url)
    assert JobStore(database).get("job_1") == job
    database.close()


def test_a_failed_transaction_leaves_no_trace(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    store = JobStore(database)
    store.create(new_job("job_1"), 10)

    def change_and_fail() -> None:
        with database.write() as session:
            session.scalars(select(JobRow)).one().status = "failed"
            session.flush()
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        change_and_fail()
    assert store.get("job_1").status == "queued"
    database.close()


def test_writers_on_two_connections_wait_for_each_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    first, second = Database(url), Database(url)

    def fill(database: Database, name: str) -> None:
        for number in range(15):
            JobStore(database).create(new_job(f"job_{name}_{number}"), 1000)

    threads = [threading.Thread(target=fill, args=(database, name)) for database, name in ((first, "a"), (second, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with first.read() as session:
        assert session.scalar(select(func.count()).select_from(JobRow)) == 30
    servers = [Leases(database, name) for database, name in ((first, "a"), (second, "b"))]
    leased = [server.acquire() for server in servers * 15]
    assert len({job.id for job in leased if job is not None}) == 30
    first.close()
    second.close()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    store = JobStore(database)
    store.create(new_job("job_1"), 10)
    with database.write() as session:  # SQLite's own limit on its file gives the error that a full disk gives
        pages = session.execute(text("PRAGMA page_count")).scalar()

    def fill() -> None:
        with database.write() as session:
            session.execute(text(f"PRAGMA max_page_count={pages}"))
            session.execute(text("CREATE TABLE filler (data BLOB)"))
            session.execute(text("INSERT INTO filler VALUES (zeroblob(10000000))"))

    with pytest.raises(StorageFull, match="free some space"):
        fill()
    assert store.get("job_1").status == "queued"
    database.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "no url at all", "mysql://host/name"])
def test_urls_that_cannot_keep_jobs_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Database(url)
    assert caught.value.param == "database_url"

"""One database: opened, brought to today's tables, and handed out one transaction at a time.

SQLite in WAL mode by default; Postgres where several gateways share one queue. On SQLite a writing transaction takes
the write lock at its beginning (BEGIN IMMEDIATE), so that two writers wait for each other instead of failing half
way; a reading one takes no lock. On Postgres writers lock the rows they change (`transitions.find`), and admissions
wait for each other (`serialise_admission`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from model.errors import InvalidRequest, MissingExtra, StillmotionError, StorageFull
from serving.jobs.errors import DatabaseBusy

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATING: Final = 7_461_001
_ADMITTING: Final = 7_461_002
"""Postgres' advisory locks are numbers; these two are ours."""


class StoreUnreachable(StillmotionError):
    """The job store cannot be opened."""

    code = "store_unreachable"


class Database:
    """A connection pool with the tables in place.

    Args:
        url: SQLAlchemy's form, such as `sqlite:///folder/jobs.db` (SQLite needs a file) or
            `postgresql://user:password@host/name`.
        busy_timeout_s: seconds that a write waits for the lock of SQLite, and before that for its turn.

    Raises:
        InvalidRequest: the URL cannot be parsed, names another kind of database, or an in-memory SQLite, which would
            forget the jobs.
        MissingExtra: the driver for Postgres is not installed.
        StoreUnreachable: there is no folder for the file, it is no database, or the server does not answer.
    """

    def __init__(self, url: str, busy_timeout_s: float = 30.0) -> None:
        parsed = _parse(url)
        self._busy_timeout_s = busy_timeout_s
        self._sqlite = parsed.get_backend_name() == "sqlite"
        try:
            if self._sqlite:
                Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
            self._migrate(parsed)
        except (OSError, DBAPIError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error.orig).strip().partition("\n")[0]
            raise StoreUnreachable(
                f"the job store {parsed.render_as_string(hide_password=True)} cannot be opened: {reason}; name another "
                "with --database-url",
                param="database_url",
            ) from error
        options: dict[str, Any] = {"connect_args": {"timeout": self._busy_timeout_s}} if self._sqlite else {}
        self._engine = create_engine(parsed, pool_pre_ping=not self._sqlite, **options)
        if self._sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        self._writing = threading.Lock()
        self._reader = self._engine.execution_options(reading=True)

    def _migrate(self, url: URL) -> None:
        """Bring the tables up to date; of several servers that start at once, one does it.

        On a connection of its own, where SQLite does not enforce foreign keys: a table is altered there by copying
        and dropping it, which would take along the rows that refer to it.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        options: dict[str, Any] = {"connect_args": {"timeout": self._busy_timeout_s}} if self._sqlite else {}
        engine = create_engine(url, poolclass=NullPool, **options)
        if self._sqlite:
            event.listen(engine, "connect", _prepare_sqlite_migration)
            event.listen(engine, "begin", _begin_sqlite)
        with engine.begin() as connection:
            if not self._sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATING})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: committed at the end, undone by an exception.

        Raises:
            StorageFull: the disk that holds the database is full.
            DatabaseBusy: another process holds SQLite's lock.
        """
        try:
            with self._turn(), Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
        except OperationalError as error:
            if "disk is full" in str(error.orig):
                raise StorageFull("the disk that holds the job database is full; free some space") from error
            if "database is locked" in str(error.orig):
                raise DatabaseBusy(self._busy_timeout_s) from error
            raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Writers of one process queue up here: SQLite's own way to wait is to sleep and look again, ever longer."""
        if not self._sqlite:
            yield
            return
        if not self._writing.acquire(timeout=self._busy_timeout_s):
            raise DatabaseBusy(self._busy_timeout_s)
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view, without a lock."""
        with Session(self._reader, expire_on_commit=False) as session:
            yield session

    def serialise_admission(self, session: Session) -> None:
        """Let no other admission happen until this transaction ends, so that limits are exact.

        SQLite's writers wait for each other anyway.
        """
        if not self._sqlite:
            session.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _ADMITTING})

    @property
    def shared(self) -> bool:
        """Whether servers on several machines may use it: on Postgres."""
        return not self._sqlite

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None for Postgres. Raises as Database does."""
    parsed = _parse(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidRequest(f"--database-url cannot be read: {error}", param="database_url") from error
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise InvalidRequest("SQLite needs a file: sqlite:///PATH", param="database_url")
        return parsed
    if kind not in ("postgresql", "postgres"):
        raise InvalidRequest(
            f"the job store is SQLite or Postgres, not {kind}: sqlite:///PATH or postgresql://...", param="database_url"
        )
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise MissingExtra("a job store on Postgres", "postgres") from error
    return parsed.set(drivername="postgresql+psycopg")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions on its own: _begin_sqlite does
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _prepare_sqlite_migration(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "foreign_keys=OFF"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

"""One database: opened, brought to today's tables, and handed out one transaction at a time.

SQLite in WAL mode by default. A writing transaction takes the write lock at its beginning (BEGIN IMMEDIATE), so that
two writers wait for each other instead of failing half way; a reading one takes no lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session

from model.errors import InvalidRequest, StorageFull

MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_S = 30


class Database:
    """A connection pool with the tables in place.

    Args:
        url: SQLAlchemy's form, such as `sqlite:///folder/jobs.db`; SQLite needs a file.

    Raises:
        InvalidRequest: the URL cannot be parsed, or names an in-memory SQLite, which would forget the jobs.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise InvalidRequest(f"--database-url cannot be read: {error}", param="database_url") from error
        options: dict[str, Any] = {}
        sqlite = parsed.get_backend_name() == "sqlite"
        if sqlite:
            if not parsed.database or parsed.database == ":memory:":
                raise InvalidRequest("SQLite needs a file: sqlite:///PATH", param="database_url")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            options["connect_args"] = {"timeout": _BUSY_TIMEOUT_S}
        self._engine = create_engine(parsed, **options)
        if sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        self._reader = self._engine.execution_options(reading=True)
        self._migrate()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: committed at the end, undone by an exception.

        Raises:
            StorageFull: the disk that holds the database is full.
        """
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
        except OperationalError as error:
            if "disk is full" in str(error.orig):
                raise StorageFull("the disk that holds the job database is full; free some space") from error
            raise

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view, without a lock."""
        with Session(self._reader, expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions on its own: _begin_sqlite does
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

"""A job store on SQLite opened at a tenth of its price: importing this is enough.

Alembic's migrations give the same empty file every time, so that each new one is a copy of the first; and SQLAlchemy
compiles each statement once for an engine, so that all engines of SQLite share what was compiled. Together they take
half the processor time of a test with an app. A file that is there is migrated as ever, and so is Postgres.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine

from serving.jobs import database
from serving.jobs.database import Database

MIGRATE: Final = Database._migrate
"""Of the product: for tests of the migrations themselves."""


class _Migrating(Database):
    """As the product opens it."""

    _migrate = MIGRATE


@cache
def _empty() -> bytes:
    """A migrated file without jobs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        _Migrating(f"sqlite:///{path}").close()
        return path.read_bytes()


def _copy_or_migrate(opened: Database, url: URL) -> None:
    file = Path(url.database or "")
    if url.get_backend_name() != "sqlite" or file.exists():
        MIGRATE(opened, url)
    else:
        file.write_bytes(_empty())


@cache
def _in_memory() -> Engine:
    """The engine whose dialect and compiled statements the others use."""
    engine = create_engine("sqlite://")
    engine.connect().close()  # its dialect has asked SQLite for its version
    return engine


def _sharing(url: URL, **options: Any) -> Engine:
    engine = create_engine(url, **options)
    if url.get_backend_name() == "sqlite":
        engine.dialect, engine._compiled_cache = _in_memory().dialect, _in_memory()._compiled_cache
    return engine


Database._migrate = _copy_or_migrate  # type: ignore[method-assign]
database.create_engine = _sharing

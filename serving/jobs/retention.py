"""What time does to jobs: a waiting one whose time has come expires, an ended one is removed with its files.

All methods block on the database: call them in a thread. Several servers may sweep the same database.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import select
from stillmotion.types import TERMINAL_STATUSES, Job

from serving.jobs import changes
from serving.jobs.database import Database
from serving.jobs.records import Terms
from serving.jobs.tables import BatchRow, JobRow

_AT_ONCE: Final = 100
"""Rows a transaction: others must not wait long for it."""


class Retention:
    """Expiry and removal.

    Args:
        database: open, with the tables in place.
        clock: Unix seconds.
        terms: how long an expired job is kept.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time, terms: Terms = Terms()) -> None:  # noqa: B008 - frozen
        self._database = database
        self._clock = clock
        self._terms = terms

    def expire(self) -> list[Job]:
        """Give up waiting jobs that have not begun in time; at most a hundred at once."""
        now = self._clock()
        due = select(JobRow).where(JobRow.status == "queued", JobRow.expires_at <= now).limit(_AT_ONCE)
        with self._database.read() as session:
            if session.scalars(due).first() is None:
                return []
        with self._database.write() as session:
            jobs = []
            for row in session.scalars(due.with_for_update(skip_locked=True)).all():
                row.error_code = "expired"
                row.error_message = "the job had not begun when its time was over; send it again, or with more time"
                jobs.append(changes.end(session, row, "expired", now, self._terms.kept_s))
            return jobs

    def remove_ended(self) -> list[str]:
        """Remove jobs that were kept for their time, at most a hundred at once; the ids, whose files are to follow."""
        due = (
            select(JobRow)
            .where(JobRow.status.in_(TERMINAL_STATUSES), JobRow.expires_at <= self._clock())
            .limit(_AT_ONCE)
        )
        with self._database.read() as session:
            if session.scalars(due).first() is None:
                return []
        with self._database.write() as session:
            rows = session.scalars(due.with_for_update(skip_locked=True)).all()
            for row in rows:
                changes.remove(session, row)
            session.flush()
            batches = {row.batch_id for row in rows if row.batch_id is not None}
            for batch in session.scalars(select(BatchRow).where(BatchRow.id.in_(batches))).all():
                if session.scalars(select(JobRow.id).where(JobRow.batch_id == batch.id).limit(1)).first() is None:
                    session.delete(batch)
            return [row.id for row in rows]

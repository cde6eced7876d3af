"""Expiry and retention: a waiting job expires, an ended one is removed with its files after its time.

Several servers may sweep the same database. Rows go first: the next sweep finds files without a job, while a job
without its files would never heal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import select
from stillmotion.types import TERMINAL_STATUSES, Job

from serving.background import Periodic, run_in_thread
from serving.jobs import transitions
from serving.jobs.artifacts import Artifacts
from serving.jobs.database import Database
from serving.jobs.notifier import Notifier
from serving.jobs.records import Lifetimes
from serving.jobs.store import JobStore
from serving.jobs.tables import BatchRow, JobRow
from serving.jobs.uploads import FOLDER as UPLOADS
from serving.jobs.uploads import UploadStore

_AT_ONCE: Final = 100
"""Rows a transaction: others must not wait long for it."""


class Retention:
    """Expiry and removal.

    Args:
        database: open, with the tables in place.
        clock: Unix seconds.
        terms: when an expired job is removed.
    """

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.time, terms: Lifetimes = Lifetimes()
    ) -> None:
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
                jobs.append(transitions.end(session, row, "expired", now, self._terms.kept_s))
            return jobs

    def remove_ended(self) -> list[str]:
        """Remove ended jobs whose time is over, at most a hundred at once; the ids, whose files are to follow."""
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
                transitions.remove(session, row)
            session.flush()
            batches = {row.batch_id for row in rows if row.batch_id is not None}
            for batch in session.scalars(select(BatchRow).where(BatchRow.id.in_(batches))).all():
                if session.scalars(select(JobRow.id).where(JobRow.batch_id == batch.id).limit(1)).first() is None:
                    session.delete(batch)
            return [row.id for row in rows]


_log = logging.getLogger(__name__)
_STRAYS_EVERY_S: Final = 3600.0


class Janitor(Periodic):
    """The periodic sweep: expiry, removal, and files that belong to no job and no upload.

    Args:
        retention, store, artifacts: what is swept.
        notifier: notified of every job that changes.
        every_s: seconds between two sweeps.
        uploads: swept too, where there are any.
    """

    def __init__(
        self,
        retention: Retention,
        store: JobStore,
        artifacts: Artifacts,
        notifier: Notifier,
        every_s: float = 30.0,
        uploads: UploadStore | None = None,
    ) -> None:
        super().__init__(self.sweep, every_s, "retention sweep")
        self._retention = retention
        self._store = store
        self._artifacts = artifacts
        self._notifier = notifier
        self._uploads = uploads
        self._strays_at = float("-inf")

    async def sweep(self) -> None:
        """One sweep: everything whose time has come."""
        while expired := await run_in_thread(self._retention.expire):
            for job in expired:
                self._notifier.notify(job.id)
        while removed := await run_in_thread(self._retention.remove_ended):
            for job_id in removed:
                await run_in_thread(self._artifacts.remove, job_id)
                self._notifier.notify(job_id)
        if self._uploads is not None:
            await run_in_thread(self._uploads.expire)
        if time.monotonic() - self._strays_at >= _STRAYS_EVERY_S:
            self._strays_at = time.monotonic()
            job_ids = await run_in_thread(self._store.ids)
            for name in await run_in_thread(self._artifacts.sweep, job_ids | {UPLOADS}):
                _log.warning("removed the files of %s, which is no job", name)
            if self._uploads is not None:
                await run_in_thread(self._uploads.sweep)

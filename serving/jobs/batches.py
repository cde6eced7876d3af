"""Batches: many jobs of the offline class, stored all together or not at all.

A batch has no state of its own: what it is follows from its jobs. All methods block on the database: call them in a
thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from stillmotion.types import TERMINAL_STATUSES, Batch, BatchCounts, BatchResult, BatchUrls

from serving.jobs import transitions
from serving.jobs.admission import IdempotentRequest, check_quota, check_share, find_previous, insert_jobs, remember
from serving.jobs.database import Database
from serving.jobs.errors import BatchNotFound, QueueFull
from serving.jobs.records import OFFLINE, Lifetimes, NewJob
from serving.jobs.tables import BatchRow, JobRow

_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch to be stored.

    Args:
        jobs: its rows, in order; each has its `batch` place.
        repeat: the caller's idempotency key, if there is one.
        quota: jobs of the owner that may wait or run; None for any number.
    """

    id: str
    owner: str
    jobs: Sequence[NewJob]
    repeat: IdempotentRequest | None = None
    quota: int | None = None


class BatchStore:
    """Batches in a database.

    Args:
        database: open, with the tables in place.
        clock: Unix seconds.
        terms: how long jobs wait, and when ended ones are removed.
    """

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.time, terms: Lifetimes = Lifetimes()
    ) -> None:
        self._database = database
        self._clock = clock
        self._terms = terms

    def admit(
        self,
        rows: int,
        limit: int,
        owner: str,
        repeat: IdempotentRequest | None,
        quota: int | None = None,
        weight: float = 1.0,
    ) -> Batch | None:
        """Whether so many rows may come in: the batch that the key already made, or None if they may.

        Raises:
            Conflict: the key was used with another request.
            QueueFull: more than `limit` offline jobs would wait.
            QuotaFull: the owner would have more than `quota` jobs waiting and running.
        """
        with self._database.read() as session:
            return self._admit(session, rows, limit, owner, repeat, quota, weight)

    def create(self, new: NewBatch, limit: int) -> tuple[Batch, bool]:
        """Store a batch with its jobs; False beside it if the key had already made one, which is then returned.

        Raises:
            Conflict, QueueFull, QuotaFull: as `admit`.
        """
        now = self._clock()
        with self._database.write() as session:
            self._database.serialise_admission(session)
            previous = self._admit(
                session, len(new.jobs), limit, new.owner, new.repeat, new.quota, new.jobs[0].weight if new.jobs else 1.0
            )
            if previous is not None:
                return previous, False
            row = BatchRow(id=new.id, owner=new.owner, created_at=now, total=len(new.jobs))
            session.add(row)
            session.flush()
            insert_jobs(session, new.jobs, now, self._terms, transitions.count_waiting(session))
            remember(session, new.repeat, new.id)
            return _wire(session, row), True

    def get(self, batch_id: str, owner: str = "") -> Batch:
        """The batch now. Raises BatchNotFound."""
        with self._database.read() as session:
            return _wire(session, _find(session, batch_id, owner))

    def results(self, batch_id: str, after_row: int, limit: int, owner: str = "") -> list[BatchResult]:
        """Rows behind `after_row` that have ended, in the batch's order, at most `limit`.

        Raises:
            BatchNotFound: there is none.
        """
        with self._database.read() as session:
            _find(session, batch_id, owner)
            query = (
                select(JobRow)
                .where(JobRow.batch_id == batch_id, JobRow.batch_row > after_row)
                .where(JobRow.status.in_(TERMINAL_STATUSES))
                .order_by(JobRow.batch_row)
                .limit(limit)
            )
            return [
                BatchResult(custom_id=row.custom_id or "", row=row.batch_row or 0, job=transitions.wire(session, row))
                for row in session.scalars(query)
            ]

    def cancel(
        self, batch_id: str, owner: str = "", repeat: IdempotentRequest | None = None
    ) -> tuple[Batch, list[str]]:
        """Cancel what waits and ask what runs to stop; the ids of the jobs concerned beside the batch.

        Raises:
            BatchNotFound: there is none.
            Conflict: the idempotency key of `repeat` came before with another request.
        """
        with self._database.write() as session:
            batch = _find(session, batch_id, owner)
            if find_previous(session, repeat) is None:
                remember(session, repeat, batch_id)
            open_rows = (
                select(JobRow)
                .where(JobRow.batch_id == batch_id, JobRow.status.in_(("queued", "in_progress")))
                .order_by(JobRow.seq)
                .with_for_update()
            )
            rows = session.scalars(open_rows).all()
            for row in rows:
                if row.status == "queued":
                    row.cancelled_at_step = 0
                    transitions.end(session, row, "cancelled", self._clock(), self._terms.kept_s)
                else:
                    row.cancel_requested = True
            session.flush()
            return _wire(session, batch), [row.id for row in rows]

    def _admit(
        self,
        session: Session,
        rows: int,
        limit: int,
        owner: str,
        repeat: IdempotentRequest | None,
        quota: int | None,
        weight: float,
    ) -> Batch | None:
        previous = find_previous(session, repeat)
        if previous is not None:
            return _wire(session, _find(session, previous, owner))
        if transitions.count_waiting(session).get(OFFLINE, 0) + rows > limit:
            try:
                check_share(session, owner, weight, rows, limit, offline=True)
            except QueueFull as error:
                raise QueueFull(limit, _RETRY_AFTER_S) from error
        check_quota(session, owner, quota, rows)
        return None


def _find(session: Session, batch_id: str, owner: str) -> BatchRow:
    if "\0" in batch_id:  # Postgres refuses such a parameter
        raise BatchNotFound(batch_id)
    row = session.scalars(select(BatchRow).where(BatchRow.id == batch_id, BatchRow.owner == owner)).first()
    if row is None:
        raise BatchNotFound(batch_id)
    return row


def _wire(session: Session, row: BatchRow) -> Batch:
    query = select(JobRow.status, func.count()).where(JobRow.batch_id == row.id).group_by(JobRow.status)
    counts = BatchCounts(**{row_counts[0]: row_counts[1] for row_counts in session.execute(query)})
    is_open = counts.queued + counts.in_progress > 0
    base = f"/batches/{row.id}"
    return Batch(
        id=row.id,
        status="in_progress" if is_open else "completed",
        created_at=row.created_at,
        total=row.total,
        counts=counts,
        urls=BatchUrls(self=base, cancel=f"{base}/cancel", results=f"{base}/results"),
    )

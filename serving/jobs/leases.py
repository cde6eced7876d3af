"""Leases: which server runs which job, for how long without a heartbeat.

A server acquires a job for `Lifetimes.lease_s` seconds and prolongs the lease by heartbeats. What it writes about the
job counts only while the lease is its own: `attempt` numbers a job's leases (a fencing token), so a server that was
paused too long can neither end nor alter a job that another, or itself later, has acquired since. A lease that ran out
puts the job back into the queue, from where it goes on at its last checkpoint. Servers' clocks must agree within a few
seconds. All methods block on the database: call them in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Subquery, func, or_, select, update
from sqlalchemy.orm import Session
from stillmotion.types import Job

from serving.engine.protocol import Share
from serving.jobs import transitions
from serving.jobs.database import Database
from serving.jobs.errors import JobNotFound, LeaseLost
from serving.jobs.records import CLASSES, OFFLINE, LeasedJob, Lifetimes, ProgressUpdate, StoredFile, Success
from serving.jobs.tables import JobRow
from serving.jobs.transitions import check_transition

_SHARE_WINDOW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The answer to a heartbeat.

    Args:
        lost: jobs it runs that are not its own any more.
        to_stop: jobs it runs whose caller asked for an end.
    """

    lost: frozenset[str]
    to_stop: frozenset[str]


class Leases:
    """The leases of one server on the jobs it runs.

    Args:
        database: open, with the tables in place.
        server: names this server; no other may ever have the same name.
        clock: Unix seconds.
        terms: how long a lease lasts, and when an ended job is removed.
    """

    def __init__(
        self,
        database: Database,
        server: str,
        clock: Callable[[], float] = time.time,
        terms: Lifetimes = Lifetimes(),
    ) -> None:
        self._database = database
        self._server = server
        self._clock = clock
        self._terms = terms

    @property
    def lease_s(self) -> float:
        """Seconds a lease lasts without a heartbeat."""
        return self._terms.lease_s

    def acquire(self, *, offline: bool = True, except_ids: Collection[str] = ()) -> LeasedJob | None:
        """Lease the next waiting job: higher class first, then who had least for their weight, then the oldest.

        Args:
            offline: whether a job of the offline class will do.
            except_ids: jobs that are not leased.
        """
        now = self._clock()
        served = _recently_served(now)
        query = (
            select(JobRow)
            .outerjoin(served, served.c.owner == JobRow.owner)
            .where(JobRow.status == "queued", or_(JobRow.expires_at.is_(None), JobRow.expires_at > now))
            .order_by(JobRow.priority.desc(), _used(served), JobRow.seq.asc())
            .limit(1)
        )
        if except_ids:
            query = query.where(JobRow.id.not_in(except_ids))
        if not offline:
            query = query.where(JobRow.priority > OFFLINE)
        with self._database.read() as session:  # without the write lock, which an idle server need not take
            if session.scalars(query).first() is None:
                return None
        with self._database.write() as session:
            row = session.scalars(query.with_for_update(of=JobRow, skip_locked=True)).first()
            if row is None:
                return None
            check_transition(row.id, row.status, "in_progress")
            row.status = "in_progress"
            row.started_at = self._clock()  # by now: the write lock may have taken its time
            row.lease_owner, row.lease_until = self._server, row.started_at + self._terms.lease_s
            row.attempt += 1
            transitions.emit(session, row, "phase")
            return _leased(row)

    def heartbeat(self, jobs: Collection[LeasedJob]) -> Heartbeat:
        """Prolong the leases of these jobs, which this server runs."""
        held: dict[str, bool] = {}
        if jobs:
            attempts = {job.id: job.attempt for job in jobs}
            with self._database.write() as session:
                until = self._clock() + self._terms.lease_s
                rows = session.execute(
                    update(JobRow)
                    .where(JobRow.id.in_(attempts), JobRow.lease_owner == self._server, JobRow.status == "in_progress")
                    .values(lease_until=until)
                    .returning(JobRow.id, JobRow.attempt, JobRow.cancel_requested)
                    .execution_options(synchronize_session=False)
                )
                held = {job_id: stop for job_id, attempt, stop in rows if attempts[job_id] == attempt}
        return Heartbeat(
            lost=frozenset(job.id for job in jobs if job.id not in held),
            to_stop=frozenset(job_id for job_id, stop in held.items() if stop),
        )

    def advance(self, job: LeasedJob, event: str, change: ProgressUpdate) -> Job:
        """Write down how far a running job came; its progress never goes back.

        Raises:
            LeaseLost: the job is not this server's (any more).
        """
        with self._database.write() as session:
            row = self._leased_row(session, job)
            row.phase = change.phase  # type: ignore[assignment]
            row.progress = max(row.progress, change.progress)
            row.step = row.step if change.step is None else change.step
            row.eta_s = change.eta_s
            row.engine_position = change.engine_position
            return transitions.emit(session, row, event)

    def preview(self, job: LeasedJob, step: int, file: StoredFile) -> str | None:
        """Tell of a preview after so many steps, whose file is stored; the name of the one whose place it takes.

        Raises:
            LeaseLost: the job is not this server's (any more).
        """
        with self._database.write() as session:
            row = self._leased_row(session, job)
            before = row.files.get("preview")
            row.files = {**row.files, "preview": asdict(file)}
            row.step = step
            transitions.emit(session, row, "preview")
            return None if before is None else str(before["name"])

    def complete(self, job: LeasedJob, success: Success) -> Job:
        """End a running job with its result. Raises LeaseLost."""
        with self._database.write() as session:
            row = self._leased_row(session, job)
            row.output = success.output.model_dump(mode="json")
            row.files = row.files | {variant: asdict(file) for variant, file in success.files.items()}
            row.timings = dict(success.timings)
            row.engine = None if success.engine is None else dict(success.engine)
            row.progress, row.phase, row.step = 100, "mux", row.total_steps
            return transitions.end(session, row, "completed", self._clock(), self._terms.kept_s)

    def fail(self, job: LeasedJob, code: str, message: str) -> Job:
        """End a running job with an error. Raises LeaseLost."""
        with self._database.write() as session:
            row = self._leased_row(session, job)
            row.error_code, row.error_message = code, message
            return transitions.end(session, row, "failed", self._clock(), self._terms.kept_s)

    def stopped(self, job: LeasedJob, step: int, compute_s: float) -> Job:
        """End a running job as cancelled after `step` steps and `compute_s` seconds of compute. Raises LeaseLost."""
        with self._database.write() as session:
            row = self._leased_row(session, job)
            row.step = row.cancelled_at_step = step
            row.timings = {**row.timings, "compute": compute_s}
            return transitions.end(session, row, "cancelled", self._clock(), self._terms.kept_s)

    def release(self, job: LeasedJob) -> Job:
        """Put a job back into the queue, for any server to run; one with a cancel request is cancelled instead.

        Raises:
            LeaseLost: the job is not this server's (any more).
        """
        with self._database.write() as session:
            return self._requeue_or_cancel(session, self._leased_row(session, job))

    def reclaim(self) -> list[Job]:
        """Put back every job whose lease has run out.

        Those with a cancel request are cancelled instead, and those that were interrupted too often fail: it may be
        they that take their servers down.
        """
        now = self._clock()
        orphaned = (JobRow.status == "in_progress", or_(JobRow.lease_until.is_(None), JobRow.lease_until < now))
        with self._database.read() as session:
            if session.scalars(select(JobRow.id).where(*orphaned).limit(1)).first() is None:
                return []
        with self._database.write() as session:
            query = select(JobRow).where(*orphaned).order_by(JobRow.seq).with_for_update(skip_locked=True)
            return [self._reclaimed(session, row) for row in session.scalars(query).all()]

    def _reclaimed(self, session: Session, row: JobRow) -> Job:
        if row.attempt < self._terms.attempts or row.cancel_requested:
            return self._requeue_or_cancel(session, row)
        row.error_code = "interrupted"
        row.error_message = f"the server was lost {row.attempt} times while it ran the job; send it again, if you will"
        return transitions.end(session, row, "failed", self._clock(), self._terms.kept_s)

    def _requeue_or_cancel(self, session: Session, row: JobRow) -> Job:
        if row.cancel_requested:
            row.cancelled_at_step = row.step
            return transitions.end(session, row, "cancelled", self._clock(), self._terms.kept_s)
        return transitions.requeue(session, row)

    def _leased_row(self, session: Session, job: LeasedJob) -> JobRow:
        """The row of a job whose lease is this server's, locked."""
        try:
            row = transitions.find(session, job.id, None, lock=True)
        except JobNotFound as error:
            raise LeaseLost(job.id, job.attempt) from error
        if (row.status, row.lease_owner, row.attempt) != ("in_progress", self._server, job.attempt):
            raise LeaseLost(job.id, job.attempt)
        return row


def _recently_served(now: float) -> Subquery:
    """How many jobs of each owner run, or began within the last minute."""
    begun = or_(JobRow.status == "in_progress", JobRow.started_at > now - _SHARE_WINDOW_S)
    query = select(JobRow.owner, func.count().label("jobs")).where(begun, JobRow.priority > OFFLINE)
    return query.group_by(JobRow.owner).subquery()


def _used(served: Subquery) -> ColumnElement[Any]:
    return func.coalesce(served.c.jobs, 0) / JobRow.weight


def _leased(row: JobRow) -> LeasedJob:
    share = Share(row.owner, row.weight, CLASSES[row.priority], row.deadline_s)
    columns = (row.id, row.task, row.model, row.params, row.output_format)
    return LeasedJob(*columns, share, row.attempt, row.previews)  # type: ignore[arg-type]

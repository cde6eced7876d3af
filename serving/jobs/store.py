"""The job store as callers meet it: every change of a job is one transaction that also writes the event telling of it.

Each method takes the owner whose jobs it may see, and gives nobody's by default but those made without keys: another's
job is not found. All methods block on the database: call them in a thread. Several servers on one database are kept
apart by the transactions; nothing is cached here. What the dispatcher does lies in `leases`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from stillmotion.types import Job, JobEvent, JobList, JobStatus, Variant

from serving.jobs import changes
from serving.jobs.database import Database
from serving.jobs.errors import Conflict, QueueFull, QuotaFull
from serving.jobs.idempotency import Repeat, made_before, remember
from serving.jobs.records import OFFLINE, PRIORITIES, NewJob, StoredFile, Terms
from serving.jobs.states import is_terminal
from serving.jobs.tables import EventRow, JobRow

_RECENT = 20
_UNKNOWN_JOB_S = 5.0
_LONGEST_WAIT_S = 600


class JobStore:
    """Jobs in a database.

    Args:
        database: open, with the tables in place.
        clock: Unix seconds.
        terms: how long jobs wait and are kept.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time, terms: Terms = Terms()) -> None:  # noqa: B008 - frozen
        self._database = database
        self._clock = clock
        self._terms = terms

    def admit(
        self,
        idempotency_key: str | None,
        body_hash: str,
        queue_limit: int,
        owner: str = "",
        quota: int | None = None,
    ) -> Job | None:
        """Whether a request may come in: the job it already made, or None if it may make one.

        Args:
            queue_limit: jobs that may wait, of all owners together.
            quota: jobs of this owner that may wait or run, offline ones aside; None for any number.

        Raises:
            Conflict: the key was used with another request.
            QueueFull, QuotaFull: no place is free.
        """
        with self._database.read() as session:
            return self._admit(session, _repeat(owner, idempotency_key, body_hash), owner, queue_limit, quota)

    def create(self, new: NewJob, queue_limit: int, quota: int | None = None) -> tuple[Job, bool]:
        """Store a queued job; False beside it if the key had already made one, which is then returned.

        Raises:
            Conflict, QueueFull, QuotaFull: as `admit`, which may have answered before another request came in.
        """
        repeat = _repeat(new.owner, new.idempotency_key, new.body_hash)
        with self._database.write() as session:
            self._database.serialise_admission(session)
            known = self._admit(session, repeat, new.owner, queue_limit, quota)
            if known is not None:
                return known, False
            job = add(session, new, self._clock(), self._terms)
            remember(session, repeat, new.id)
            return job, True

    def get(self, job_id: str, owner: str = "") -> Job:
        """The job now. Raises JobNotFound."""
        with self._database.read() as session:
            return changes.wire(session, changes.find(session, job_id, owner))

    def page(
        self, status: JobStatus | None, after: str | None, limit: int, order: Literal["asc", "desc"], owner: str = ""
    ) -> JobList:
        """At most `limit` jobs in order of arrival, beginning behind the job `after`.

        Raises:
            JobNotFound: there is no job `after`.
        """
        query = select(JobRow).where(JobRow.owner == owner).limit(limit + 1)
        query = query.order_by(JobRow.seq.asc() if order == "asc" else JobRow.seq.desc())
        with self._database.read() as session:
            if status is not None:
                query = query.where(JobRow.status == status)
            if after is not None:
                seq = changes.find(session, after, owner, param="after").seq
                query = query.where(JobRow.seq > seq if order == "asc" else JobRow.seq < seq)
            rows = session.scalars(query).all()
            jobs = [changes.wire(session, row) for row in rows[:limit]]
        return JobList(data=jobs, has_more=len(rows) > limit, last_id=jobs[-1].id if jobs else None)

    def cancel(self, job_id: str, owner: str = "", repeat: Repeat | None = None) -> Job:
        """Cancel a waiting job, or note that a running one is to stop; a finished one stays as it is.

        Raises:
            JobNotFound: there is none.
            Conflict: the idempotency key of `repeat` came before with another request.
        """
        with self._database.write() as session:
            row = changes.find(session, job_id, owner, lock=True)
            if made_before(session, repeat) is None:
                remember(session, repeat, job_id)
            if row.status == "queued":
                row.cancelled_at_step = 0
                return changes.end(session, row, "cancelled", self._clock(), self._terms.kept_s)
            if not is_terminal(row.status):
                row.cancel_requested = True
            return changes.wire(session, row)

    def delete(self, job_id: str, owner: str = "") -> None:
        """Remove a job and its events.

        Raises:
            JobNotFound: there is none.
            Conflict: it is running.
        """
        with self._database.write() as session:
            row = changes.find(session, job_id, owner, lock=True)
            if row.status == "in_progress":
                raise Conflict("the job is running; cancel it and wait until it has stopped", code="job_in_progress")
            changes.remove(session, row)

    def events_after(self, job_id: str, last: int, owner: str = "") -> tuple[list[JobEvent], bool]:
        """The job's events with ids above `last`, oldest first, and whether no more will come.

        Raises:
            JobNotFound: there is no such job.
        """
        with self._database.read() as session:
            # The job first: if it has ended by now, the events read after it hold the one that tells so.
            ended = is_terminal(changes.find(session, job_id, owner).status)
            rows = session.scalars(
                select(EventRow).where(EventRow.job_id == job_id, EventRow.id > last).order_by(EventRow.id)
            )
            events = [JobEvent.model_validate({"id": row.id, "event": row.event, "job": row.job}) for row in rows]
            return events, ended

    def newest_events(self, job_ids: Iterable[str]) -> dict[str, int]:
        """The id of the newest event of each of these jobs; those that are gone are left out."""
        with self._database.read() as session:
            rows = session.execute(select(JobRow.id, JobRow.last_event).where(JobRow.id.in_(tuple(job_ids))))
            return {row[0]: row[1] for row in rows}

    def file(self, job_id: str, variant: Variant, owner: str = "") -> StoredFile:
        """Where a completed job's result lies.

        Raises:
            JobNotFound: there is no such job.
            Conflict: it is not completed (yet).
        """
        with self._database.read() as session:
            row = changes.find(session, job_id, owner)
            if row.status != "completed":
                later = "" if is_terminal(row.status) else "; follow its events, or ask again later"
                raise Conflict(f"the job is {row.status}, it has no content{later}", code="content_not_ready")
            return StoredFile(**row.files[variant])

    def ids(self) -> set[str]:
        """The id of every job, whoever's."""
        with self._database.read() as session:
            return set(session.scalars(select(JobRow.id)))

    def _admit(
        self, session: Session, repeat: Repeat | None, owner: str, queue_limit: int, quota: int | None
    ) -> Job | None:
        known = made_before(session, repeat)
        if known is not None:
            return changes.wire(session, changes.find(session, known, owner))
        if changes.count_waiting(session) >= queue_limit:
            raise QueueFull(queue_limit, self._retry_after(session))
        if quota is not None:
            open_jobs = select(func.count()).select_from(JobRow)
            open_jobs = open_jobs.where(JobRow.owner == owner, JobRow.status.in_(("queued", "in_progress")))
            open_jobs = open_jobs.where(JobRow.priority > OFFLINE)
            if (session.scalar(open_jobs) or 0) >= quota:
                raise QuotaFull(quota, self._retry_after(session))
        return None

    def _retry_after(self, session: Session) -> int:
        """Seconds until a place should be free: what a job takes, by the newest completed ones."""
        recent = (
            select(JobRow.completed_at - JobRow.started_at)
            .where(JobRow.status == "completed")
            .order_by(JobRow.completed_at.desc())
            .limit(_RECENT)
        )
        took = [seconds for seconds in session.scalars(recent) if seconds is not None]
        typical = sum(took) / len(took) if took else _UNKNOWN_JOB_S
        return min(max(1, math.ceil(typical)), _LONGEST_WAIT_S)


def _repeat(owner: str, key: str | None, request_hash: str) -> Repeat | None:
    return None if key is None else Repeat(owner, key, request_hash)


def add(session: Session, new: NewJob, now: float, terms: Terms) -> Job:
    """Write a new job's row and its first event."""
    row = JobRow(
        id=new.id,
        task=new.task,
        status="queued",
        phase="queued",
        progress=0,
        step=0,
        total_steps=new.total_steps,
        created_at=now,
        expires_at=now + min(terms.waiting_s, math.inf if new.deadline_s is None else new.deadline_s),
        model=new.model,
        model_version=new.model_version,
        seed=new.seed,
        params=dict(new.params),
        output_format=new.output_format,
        priority=PRIORITIES[new.priority],
        labels=dict(new.metadata),
        timings={},
        files={},
        cancel_requested=False,
        last_event=0,
        owner=new.owner,
        weight=new.weight,
        deadline_s=new.deadline_s,
        attempt=0,
    )
    if new.webhook is not None:
        row.webhook_url, row.webhook_secret = new.webhook.url, new.webhook.secret
    if new.batch is not None:
        row.batch_id, row.batch_row, row.custom_id = new.batch.batch_id, new.batch.row, new.batch.custom_id
    session.add(row)
    session.flush()
    return changes.emit(session, row, "queued")

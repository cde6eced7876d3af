"""The job store as callers meet it: every change of a job is one transaction with the event that tells of it.

Each method takes the owner whose jobs it may see, and by default sees only jobs made without keys: another's job is
not found. All methods block on the database: call them in a thread. Several servers on one database are isolated by
transactions; nothing is cached here. What the dispatcher does is in `leases`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session
from stillmotion.types import Job, JobEvent, JobList, JobStatus, Preview, Variant

from model.errors import StillmotionError
from serving.jobs import transitions
from serving.jobs.admission import (
    AdmissionControl,
    AdmissionRequest,
    IdempotentRequest,
    find_previous,
    insert_jobs,
    remember,
)
from serving.jobs.database import Database
from serving.jobs.errors import Conflict, QueueFull
from serving.jobs.records import Lifetimes, NewJob, StoredFile
from serving.jobs.tables import EventRow, JobRow
from serving.jobs.transitions import is_terminal


class JobStore:
    """Jobs in a database.

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
        idempotency_key: str | None,
        body_hash: str,
        queue_limit: int,
        owner: str = "",
        quota: int | None = None,
        weight: float = 1.0,
    ) -> Job | None:
        """Whether a request may come in: the job it already made, or None if it may make one.

        Args:
            queue_limit: jobs that may wait, of all owners together.
            quota: jobs of this owner that may wait or run; None for any number.
            weight: of the owner's share of a full queue.

        Raises:
            Conflict: the key was used with another request.
            QueueFull, QuotaFull: no place is free.
        """
        repeat = None if idempotency_key is None else IdempotentRequest(owner, idempotency_key, body_hash)
        with self._database.read() as session:
            previous_id = find_previous(session, repeat)
            if previous_id is not None:
                return transitions.wire(session, transitions.find(session, previous_id, owner))
            AdmissionControl(session, queue_limit).check(owner, weight, quota)
            return None

    def create(self, new: NewJob, queue_limit: int, quota: int | None = None) -> tuple[Job, bool]:
        """Store a queued job; False beside it if the key had already made one, which is then returned.

        Raises:
            Conflict, QueueFull, QuotaFull: as `admit`, which may have answered before another request came in.
        """
        (outcome,) = self.create_all([AdmissionRequest(new, quota)], queue_limit)
        if isinstance(outcome, StillmotionError):
            raise outcome
        return outcome

    def create_all(
        self, requests: Sequence[AdmissionRequest], queue_limit: int
    ) -> list[tuple[Job, bool] | StillmotionError]:
        """As `create` for each in turn, in one transaction: what it would return, or the error it would raise."""
        with self._database.write() as session:
            self._database.serialise_admission(session)
            admission = AdmissionControl(session, queue_limit)
            admitted: list[NewJob] = []
            outcomes: list[tuple[str, bool] | StillmotionError] = []
            for one in requests:
                try:
                    previous_id = admission.admit_or_raise(one)
                except (Conflict, QueueFull) as error:
                    outcomes.append(error)
                    continue
                outcomes.append((previous_id or one.new.id, previous_id is None))
                if previous_id is None:
                    admitted.append(one.new)
            jobs = insert_jobs(session, admitted, self._clock(), self._terms, admission.waiting)
            inserted = {job.id: job for job in jobs}
            return [
                outcome
                if isinstance(outcome, StillmotionError)
                else (inserted.get(outcome[0]) or self._existing(session, outcome[0]), outcome[1])
                for outcome in outcomes
            ]

    def get(self, job_id: str, owner: str = "") -> Job:
        """The job now. Raises JobNotFound."""
        with self._database.read() as session:
            return transitions.wire(session, transitions.find(session, job_id, owner))

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
                seq = transitions.find(session, after, owner, param="after").seq
                query = query.where(JobRow.seq > seq if order == "asc" else JobRow.seq < seq)
            rows = session.scalars(query).all()
            jobs = [transitions.wire(session, row) for row in rows[:limit]]
        return JobList(data=jobs, has_more=len(rows) > limit, last_id=jobs[-1].id if jobs else None)

    def cancel(self, job_id: str, owner: str = "", repeat: IdempotentRequest | None = None) -> Job:
        """Cancel a waiting job, or note that a running one is to stop; a finished one stays as it is.

        Raises:
            JobNotFound: there is none.
            Conflict: the idempotency key of `repeat` came before with another request.
        """
        with self._database.write() as session:
            row = transitions.find(session, job_id, owner, lock=True)
            if find_previous(session, repeat) is None:
                remember(session, repeat, job_id)
            if row.status == "queued":
                row.cancelled_at_step = 0
                return transitions.end(session, row, "cancelled", self._clock(), self._terms.kept_s)
            if not is_terminal(row.status):
                row.cancel_requested = True
            return transitions.wire(session, row)

    def delete(self, job_id: str, owner: str = "") -> None:
        """Remove a job and its events.

        Raises:
            JobNotFound: there is none.
            Conflict: it is running.
        """
        with self._database.write() as session:
            row = transitions.find(session, job_id, owner, lock=True)
            if row.status == "in_progress":
                raise Conflict("the job is running; cancel it and wait until it has stopped", code="job_in_progress")
            transitions.remove(session, row)

    def events_after(self, job_id: str, last: int, owner: str = "") -> tuple[list[JobEvent], bool]:
        """The job's events with ids above `last`, oldest first, and whether no more will come.

        Raises:
            JobNotFound: there is no such job.
        """
        with self._database.read() as session:
            # The job first: if it has ended by now, the events read after it hold the one that tells so.
            ended = is_terminal(transitions.find(session, job_id, owner).status)
            rows = session.scalars(
                select(EventRow).where(EventRow.job_id == job_id, EventRow.id > last).order_by(EventRow.id)
            )
            return [_event(row) for row in rows], ended

    def newest_events(self, job_ids: Iterable[str]) -> dict[str, int]:
        """The id of the newest event of each of these jobs; those that are gone are left out."""
        with self._database.read() as session:
            rows = session.execute(select(JobRow.id, JobRow.last_event).where(JobRow.id.in_(tuple(job_ids))))
            return {row[0]: row[1] for row in rows}

    def file(self, job_id: str, variant: Variant, owner: str = "") -> StoredFile:
        """Where a completed job's result lies; or the newest preview, also of one that still runs.

        Raises:
            JobNotFound: there is no such job.
            Conflict: it is not completed (yet), or has no preview.
        """
        with self._database.read() as session:
            row = transitions.find(session, job_id, owner)
            if variant == "preview" and "preview" not in row.files:
                reason = "there is none yet" if row.previews else "none was asked for: submit with previews"
                raise Conflict(f"the job has no preview; {reason}", code="content_not_ready")
            if variant != "preview" and row.status != "completed":
                later = "" if is_terminal(row.status) else "; follow its events, or ask again later"
                raise Conflict(f"the job is {row.status}, it has no content{later}", code="content_not_ready")
            return StoredFile(**row.files[variant])

    @staticmethod
    def _existing(session: Session, job_id: str) -> Job:
        return transitions.wire(session, transitions.find(session, job_id, None))

    def ids(self) -> set[str]:
        """The id of every job, whoever's."""
        with self._database.read() as session:
            return set(session.scalars(select(JobRow.id)))


def _event(row: EventRow) -> JobEvent:
    job = Job.model_validate(row.job)
    preview = None
    if row.event == "preview":
        preview = Preview(step=job.step, url=f"{job.urls.content}?variant=preview")
    return JobEvent.model_validate({"id": row.id, "event": row.event, "job": job, "preview": preview})

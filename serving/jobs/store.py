"""The job store: every change of a job is one transaction that also writes the event telling of it.

All methods block on the database: call them in a thread. Two servers on one database are kept apart by the
transactions; nothing is cached here.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session
from stillmotion.types import Job, JobEvent, JobList, JobStatus, Variant

from serving.jobs.database import Database
from serving.jobs.errors import Conflict, JobNotFound, QueueFull
from serving.jobs.records import PRIORITIES, Advance, LeasedJob, NewJob, StoredFile, Success, to_wire
from serving.jobs.states import check_transition, is_terminal
from serving.jobs.tables import EventRow, JobRow

_RECENT = 20
_UNKNOWN_JOB_S = 5.0
_LONGEST_WAIT_S = 600


def hash_body(fields: Mapping[str, Any], image: bytes) -> str:
    """SHA-256 over what a caller sent, whatever the order of the fields."""
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()


class JobStore:
    """Jobs in a database.

    Args:
        database: open, with the tables in place.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    # -- what callers do ------------------------------------------------------------------------------------------

    def admit(self, idempotency_key: str | None, body_hash: str, queue_limit: int) -> Job | None:
        """Whether a request may come in: the job it already made, or None if it may make one.

        Raises:
            Conflict: the key was used with another body.
            QueueFull: no place is free.
        """
        with self._database.read() as session:
            return self._admit(session, idempotency_key, body_hash, queue_limit)

    def create(self, new: NewJob, queue_limit: int) -> tuple[Job, bool]:
        """Store a queued job; False beside it if the key had already made one, which is then returned.

        Raises:
            Conflict, QueueFull: as `admit`, which may have answered before another request came in.
        """
        with self._database.write() as session:
            known = self._admit(session, new.idempotency_key, new.body_hash, queue_limit)
            if known is not None:
                return known, False
            row = self._new_row(new)
            session.add(row)
            session.flush()
            return self._emit(session, row, "queued"), True

    def get(self, job_id: str) -> Job:
        """The job now. Raises JobNotFound."""
        with self._database.read() as session:
            return _wire(session, _row(session, job_id))

    def page(self, status: JobStatus | None, after: str | None, limit: int, order: Literal["asc", "desc"]) -> JobList:
        """At most `limit` jobs in order of arrival, beginning behind the job `after`.

        Raises:
            JobNotFound: there is no job `after`.
        """
        query = select(JobRow).order_by(JobRow.seq.asc() if order == "asc" else JobRow.seq.desc()).limit(limit + 1)
        with self._database.read() as session:
            if status is not None:
                query = query.where(JobRow.status == status)
            if after is not None:
                seq = _row(session, after, param="after").seq
                query = query.where(JobRow.seq > seq if order == "asc" else JobRow.seq < seq)
            rows = session.scalars(query).all()
            jobs = [_wire(session, row) for row in rows[:limit]]
        return JobList(data=jobs, has_more=len(rows) > limit, last_id=jobs[-1].id if jobs else None)

    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job, or note that a running one is to stop; a finished one stays as it is."""
        with self._database.write() as session:
            row = _row(session, job_id)
            if row.status == "queued":
                row.cancelled_at_step = 0
                return self._end(session, row, "cancelled")
            if not is_terminal(row.status):
                row.cancel_requested = True
            return _wire(session, row)

    def delete(self, job_id: str) -> None:
        """Remove a job and its events.

        Raises:
            JobNotFound: there is none.
            Conflict: it is running.
        """
        with self._database.write() as session:
            row = _row(session, job_id)
            if row.status == "in_progress":
                raise Conflict("the job is running; cancel it and wait until it has stopped", code="job_in_progress")
            session.execute(delete(EventRow).where(EventRow.job_id == job_id))
            session.delete(row)

    def events_after(self, job_id: str, last: int) -> tuple[list[JobEvent], bool]:
        """The job's events with ids above `last`, oldest first, and whether no more will come.

        Raises:
            JobNotFound: there is no such job.
        """
        with self._database.read() as session:
            # The job first: if it has ended by now, the events read after it hold the one that tells so.
            ended = is_terminal(_row(session, job_id).status)
            rows = session.scalars(
                select(EventRow).where(EventRow.job_id == job_id, EventRow.id > last).order_by(EventRow.id)
            )
            events = [JobEvent.model_validate({"id": row.id, "event": row.event, "job": row.job}) for row in rows]
            return events, ended

    def file(self, job_id: str, variant: Variant) -> StoredFile:
        """Where a completed job's result lies.

        Raises:
            JobNotFound: there is no such job.
            Conflict: it is not completed (yet).
        """
        with self._database.read() as session:
            row = _row(session, job_id)
            if row.status != "completed":
                later = "" if is_terminal(row.status) else "; follow its events, or ask again later"
                raise Conflict(f"the job is {row.status}, it has no content{later}", code="content_not_ready")
            return StoredFile(**row.files[variant])

    # -- what the dispatcher does ---------------------------------------------------------------------------------

    def lease(self) -> LeasedJob | None:
        """Take the next waiting job, higher priority first and then the oldest, and mark it running."""
        query = (
            select(JobRow)
            .where(JobRow.status == "queued")
            .order_by(JobRow.priority.desc(), JobRow.seq.asc())
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with self._database.read() as session:
            if session.scalars(query).first() is None:
                return None
        with self._database.write() as session:
            row = session.scalars(query).first()
            if row is None:
                return None
            check_transition(row.id, row.status, "in_progress")
            row.status = "in_progress"
            row.started_at = self._clock()
            self._emit(session, row, "phase")
            return LeasedJob(row.id, row.task, row.model, row.params, row.output_format)  # type: ignore[arg-type]

    def advance(self, job_id: str, event: str, change: Advance) -> Job:
        """Write down how far a running job came; its progress never goes back.

        Raises:
            Conflict: the job is not running.
        """
        with self._database.write() as session:
            row = _row(session, job_id)
            if row.status != "in_progress":
                raise Conflict(f"job {job_id} is {row.status}, not running")
            row.phase = change.phase  # type: ignore[assignment]
            row.progress = max(row.progress, change.progress)
            row.step = row.step if change.step is None else change.step
            row.eta_s = change.eta_s
            row.engine_position = change.engine_position
            return self._emit(session, row, event)

    def complete(self, job_id: str, success: Success) -> Job:
        """End a running job with its result."""
        with self._database.write() as session:
            row = _row(session, job_id)
            row.output = success.output.model_dump(mode="json")
            row.files = {variant: asdict(file) for variant, file in success.files.items()}
            row.timings = dict(success.timings)
            row.progress, row.phase, row.step = 100, "mux", row.total_steps
            return self._end(session, row, "completed")

    def fail(self, job_id: str, code: str, message: str) -> Job:
        """End a running job with an error."""
        with self._database.write() as session:
            row = _row(session, job_id)
            row.error_code, row.error_message = code, message
            return self._end(session, row, "failed")

    def stopped(self, job_id: str, step: int, compute_s: float) -> Job:
        """End a running job as cancelled after `step` steps and `compute_s` seconds of compute."""
        with self._database.write() as session:
            row = _row(session, job_id)
            row.step = row.cancelled_at_step = step
            row.timings = {**row.timings, "compute": compute_s}
            return self._end(session, row, "cancelled")

    def requeue_interrupted(self) -> list[Job]:
        """Put every job back that a server left running when it ended; those asked to stop are cancelled instead."""
        jobs = []
        with self._database.write() as session:
            for row in session.scalars(select(JobRow).where(JobRow.status == "in_progress").order_by(JobRow.seq)):
                if row.cancel_requested:
                    row.cancelled_at_step = row.step
                    jobs.append(self._end(session, row, "cancelled"))
                    continue
                check_transition(row.id, row.status, "queued")
                row.status, row.phase, row.progress, row.step = "queued", "queued", 0, 0
                row.started_at = row.eta_s = row.engine_position = None
                jobs.append(self._emit(session, row, "queued"))
        return jobs

    def ids(self) -> set[str]:
        """The id of every job."""
        with self._database.read() as session:
            return set(session.scalars(select(JobRow.id)))

    # -- within a transaction -------------------------------------------------------------------------------------

    def _admit(self, session: Session, key: str | None, body_hash: str, queue_limit: int) -> Job | None:
        if key is not None:
            row = session.scalars(select(JobRow).where(JobRow.idempotency_key == key)).first()
            if row is not None:
                if row.body_hash != body_hash:
                    raise Conflict(
                        "this Idempotency-Key came before with another body; use a new key for a new request",
                        code="idempotency_mismatch",
                        param="Idempotency-Key",
                    )
                return _wire(session, row)
        waiting = _count_waiting(session)
        if waiting >= queue_limit:
            raise QueueFull(queue_limit, self._retry_after(session))
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

    def _new_row(self, new: NewJob) -> JobRow:
        return JobRow(
            id=new.id,
            task=new.task,
            status="queued",
            phase="queued",
            progress=0,
            step=0,
            total_steps=new.total_steps,
            created_at=self._clock(),
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
            idempotency_key=new.idempotency_key,
            body_hash=new.body_hash,
            last_event=0,
        )

    def _end(
        self, session: Session, row: JobRow, status: Literal["completed", "failed", "cancelled", "expired"]
    ) -> Job:
        check_transition(row.id, row.status, status)
        row.status = status
        row.completed_at = self._clock()
        row.eta_s = row.engine_position = None
        return self._emit(session, row, status)

    def _emit(self, session: Session, row: JobRow, event: str) -> Job:
        """Write the event that tells of a change just made to `row`."""
        row.last_event += 1
        session.flush()
        job = _wire(session, row)
        session.add(EventRow(job_id=row.id, id=row.last_event, event=event, job=job.model_dump(mode="json")))
        return job


def _row(session: Session, job_id: str, *, param: str | None = None) -> JobRow:
    row = session.scalars(select(JobRow).where(JobRow.id == job_id)).first()
    if row is None:
        raise JobNotFound(job_id, param=param)
    return row


def _count_waiting(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(JobRow).where(JobRow.status == "queued")) or 0


def _wire(session: Session, row: JobRow) -> Job:
    if row.status != "queued":
        return to_wire(row, row.engine_position)
    ahead = or_(JobRow.priority > row.priority, and_(JobRow.priority == row.priority, JobRow.seq < row.seq))
    query = select(func.count()).select_from(JobRow).where(JobRow.status == "queued", ahead)
    return to_wire(row, session.scalar(query) or 0)

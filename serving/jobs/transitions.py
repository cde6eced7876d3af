"""The state machine of a job: legal changes of status, each in one transaction with the event that tells of it.

Everything that alters a job's row ends in `emit`, so the row and its history cannot part.

    queued -> in_progress -> completed | failed | cancelled | expired
    queued -> cancelled | expired              (before any compute)
    in_progress -> queued                      (the server that ran it is gone; it runs again)

A terminal status is followed by nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal, get_args
from uuid import uuid4

from sqlalchemy import Connection, and_, bindparam, delete, func, or_, select
from sqlalchemy.orm import Session
from stillmotion.types import TERMINAL_STATUSES, Job, JobStatus

from serving.jobs.errors import IllegalTransition, JobNotFound
from serving.jobs.records import OFFLINE, WebhookTarget, to_wire
from serving.jobs.tables import DeliveryRow, EventRow, IdempotencyRow, JobRow

TRANSITIONS: Final[dict[JobStatus, frozenset[JobStatus]]] = {
    "queued": frozenset({"in_progress", "cancelled", "expired"}),
    "in_progress": frozenset({"completed", "failed", "cancelled", "expired", "queued"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
    "expired": frozenset(),
}
STATUSES: Final[tuple[JobStatus, ...]] = get_args(JobStatus)


def check_transition(job_id: str, before: JobStatus, after: JobStatus) -> None:
    """Raise IllegalTransition unless `after` may follow `before`."""
    if after not in TRANSITIONS[before]:
        raise IllegalTransition(f"job {job_id} is {before} and cannot become {after}")


def is_terminal(status: str) -> bool:
    """Whether nothing follows this status."""
    return status in TERMINAL_STATUSES


Ended = Literal["completed", "failed", "cancelled", "expired"]

# Built once: writing these statements anew took as long as asking them. Those that only count ask the table itself, not
# the mapped class, which costs as much again.
_BY_ID: Final = select(JobRow).where(JobRow.id == bindparam("id"))
_OWNED: Final = _BY_ID.where(JobRow.owner == bindparam("owner"))
_JOBS: Final = JobRow.__table__.c
_WAITING: Final = select(_JOBS.priority, func.count()).where(_JOBS.status == "queued").group_by(_JOBS.priority)
_AHEAD: Final = (
    select(func.count())
    .select_from(JobRow.__table__)
    .where(
        _JOBS.status == "queued",
        or_(
            _JOBS.priority > bindparam("priority"),
            and_(_JOBS.priority == bindparam("priority"), _JOBS.seq < bindparam("seq")),
        ),
    )
)


def find(session: Session, job_id: str, owner: str | None, *, lock: bool = False, param: str | None = None) -> JobRow:
    """A job's row.

    Args:
        owner: whose it must be; None for anybody's.
        lock: keep others from changing it until the transaction ends (SQLite's writers wait for each other anyway).

    Raises:
        JobNotFound: there is none, or it is another's: the two cannot be told apart from outside.
    """
    if "\0" in job_id:  # Postgres refuses such a parameter
        raise JobNotFound(job_id, param=param)
    query = _BY_ID if owner is None else _OWNED
    row = session.scalars(query.with_for_update() if lock else query, {"id": job_id, "owner": owner}).first()
    if row is None:
        raise JobNotFound(job_id, param=param)
    return row


def emit(session: Session, row: JobRow, event: str) -> Job:
    """Write the event that tells of a change just made to `row`."""
    row.last_event += 1
    session.flush()
    job = wire(session, row)
    session.add(EventRow(job_id=row.id, id=row.last_event, event=event, job=job.model_dump(mode="json")))
    return job


def end(session: Session, row: JobRow, status: Ended, now: float, kept_s: float | None) -> Job:
    """Give the job its last status, and put its webhook's message into the outbox.

    Args:
        kept_s: seconds until the job is removed; None for never.
    """
    check_transition(row.id, row.status, status)
    row.status = status
    row.completed_at = now
    row.expires_at = None if kept_s is None else now + kept_s
    row.eta_s = row.engine_position = row.lease_owner = row.lease_until = None
    job = emit(session, row, status)
    if row.webhook_url is not None:
        session.add(_delivery(row, job, now, WebhookTarget(row.webhook_url, row.webhook_secret)))
    return job


def renew(session: Session, row: JobRow, now: float, kept_s: float | None, webhook: WebhookTarget | None) -> Job:
    """An ended job is the answer to another request: it stays as long as if it had ended now, and `webhook` is told.

    No event: what callers see of the job's course does not change.
    """
    row.expires_at = None if kept_s is None else now + kept_s
    job = wire(session, row)
    if webhook is not None:
        session.add(_delivery(row, job, now, webhook))
    return job


def requeue(session: Session, row: JobRow) -> Job:
    """Put a running job back into the queue, at its old place."""
    check_transition(row.id, row.status, "queued")
    row.status, row.phase, row.progress, row.step = "queued", "queued", 0, 0
    row.started_at = row.eta_s = row.engine_position = row.lease_owner = row.lease_until = None
    return emit(session, row, "queued")


def remove(session: Session, row: JobRow) -> None:
    """Remove a job with everything that refers to it."""
    session.execute(delete(EventRow).where(EventRow.job_id == row.id))
    session.execute(delete(DeliveryRow).where(DeliveryRow.job_id == row.id))
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.target == row.id))
    session.delete(row)


def wire(session: Session, row: JobRow) -> Job:
    """The wire's view of a row, with its place in the queue while it waits."""
    if row.status != "queued":
        return to_wire(row, row.engine_position)
    return to_wire(row, tables(session).scalar(_AHEAD, {"priority": row.priority, "seq": row.seq}) or 0)


def tables(session: Session) -> Connection:
    """The transaction past the mapped classes, with all that they have to write written."""
    session.flush()
    return session.connection()


def count_waiting(session: Session) -> dict[int, int]:
    """How many jobs of each class wait."""
    return {row[0]: row[1] for row in tables(session).execute(_WAITING)}


def without_offline(waiting: Mapping[int, int]) -> int:
    """How many of these count against the queue's limit: offline jobs have one of their own."""
    return sum(count for priority, count in waiting.items() if priority > OFFLINE)


def _delivery(row: JobRow, job: Job, now: float, webhook: WebhookTarget) -> DeliveryRow:
    """The message: https://www.standardwebhooks.com gives its outer form."""
    at = datetime.fromtimestamp(now, UTC).isoformat().replace("+00:00", "Z")
    message = {"type": f"job.{row.status}", "timestamp": at, "data": job.model_dump(mode="json")}
    return DeliveryRow(
        id=f"msg_{uuid4().hex}",
        job_id=row.id,
        url=webhook.url,
        secret=webhook.secret,
        body=json.dumps(message, separators=(",", ":")),
        created_at=now,
        next_at=now,
        attempts=0,
    )

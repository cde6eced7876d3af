"""Admission control: limits, quotas and idempotency keys are checked within the transaction that inserts the jobs.

So limits hold whatever other servers insert meanwhile. New jobs and their first events are two statements, however
many they are. An idempotency key belongs to its owner, holds for every kind of POST, and goes when its job is removed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, cast

from sqlalchemy import Table, func, insert, select
from sqlalchemy.orm import Session
from stillmotion.types import Job

from serving.jobs import transitions
from serving.jobs.errors import Conflict, QueueFull, QuotaFull
from serving.jobs.records import OFFLINE, PRIORITIES, Lifetimes, NewJob, to_wire
from serving.jobs.tables import EventRow, IdempotencyRow, JobRow

_FIRST_EVENT = 1
# Into the tables rather than through the mapped classes, whose bookkeeping cost as much as the insertion.
_NEW_JOBS: Final = insert(cast(Table, JobRow.__table__))
_NEW_EVENTS: Final = insert(cast(Table, EventRow.__table__))
_UNSET: Final = dict.fromkeys(attribute.key for attribute in JobRow.__mapper__.column_attrs)


def insert_jobs(
    session: Session, new: Sequence[NewJob], now: float, terms: Lifetimes, waiting: Mapping[int, int]
) -> list[Job]:
    """Write queued jobs in this order, each with the event that tells of it.

    Args:
        now: Unix seconds.
        waiting: how many jobs of each class wait already (`transitions.count_waiting`): their queue positions.
    """
    if not new:
        return []
    before = dict(waiting)
    rows, events, jobs = [], [], []
    for one in new:
        values = _values(one, now, terms)
        priority = values["priority"]
        ahead = sum(count for other, count in before.items() if other >= priority)
        before[priority] = before.get(priority, 0) + 1
        # Only read, so no mapped row, which watches each of its forty attributes being set.
        job = to_wire(cast(JobRow, SimpleNamespace(**_UNSET | values)), ahead)
        rows.append(values)
        jobs.append(job)
        events.append({"job_id": one.id, "id": _FIRST_EVENT, "event": "queued", "job": job.model_dump(mode="json")})
    connection = transitions.tables(session)
    connection.execute(_NEW_JOBS, [{"metadata": row.pop("labels"), **row} for row in rows])
    connection.execute(_NEW_EVENTS, events)
    return jobs


def _values(new: NewJob, now: float, terms: Lifetimes) -> dict[str, Any]:
    return {
        "id": new.id,
        "task": new.task,
        "status": "queued",
        "phase": "queued",
        "progress": 0,
        "step": 0,
        "total_steps": new.total_steps,
        "created_at": now,
        "expires_at": now + min(terms.waiting_s, math.inf if new.deadline_s is None else new.deadline_s),
        "model": new.model,
        "model_version": new.model_version,
        "seed": new.seed,
        "params": dict(new.params),
        "output_format": new.output_format,
        "priority": PRIORITIES[new.priority],
        "labels": dict(new.metadata),
        "timings": {},
        "files": {},
        "cancel_requested": False,
        "last_event": _FIRST_EVENT,
        "owner": new.owner,
        "weight": new.weight,
        "deadline_s": new.deadline_s,
        "attempt": 0,
        "previews": new.previews,
        "identity": new.identity,
        "webhook_url": None if new.webhook is None else new.webhook.url,
        "webhook_secret": None if new.webhook is None else new.webhook.secret,
        "batch_id": None if new.batch is None else new.batch.batch_id,
        "batch_row": None if new.batch is None else new.batch.row,
        "custom_id": None if new.batch is None else new.batch.custom_id,
    }


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """What identifies a repeated request: the caller's key, and the hash of the request."""

    owner: str
    key: str
    request_hash: str


def hash_body(fields: Mapping[str, Any], *images: bytes) -> str:
    """SHA-256 over what a caller sent, whatever the order of the fields.

    Args:
        images: the SHA-256 of each picture.
    """
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for image in images:
        digest.update(image)
    return digest.hexdigest()


def find_previous(session: Session, repeat: IdempotentRequest | None) -> str | None:
    """The id of what the key made before; None if it is new, or there is no key.

    Raises:
        Conflict: it came before with another request.
    """
    if repeat is None:
        return None
    row = session.get(IdempotencyRow, (repeat.owner, repeat.key))
    if row is None:
        return None
    if row.request_hash != repeat.request_hash:
        raise Conflict(
            "this Idempotency-Key came before with another request; use a new key for a new request",
            code="idempotency_mismatch",
            param="Idempotency-Key",
        )
    return row.target


def remember(session: Session, repeat: IdempotentRequest | None, target: str) -> None:
    """Note what the key has made; within the transaction that makes it."""
    if repeat is not None:
        session.add(IdempotencyRow(owner=repeat.owner, key=repeat.key, request_hash=repeat.request_hash, target=target))


_RECENT = 20
_UNKNOWN_JOB_S = 5.0
_LONGEST_WAIT_S = 600


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """A job that asks to be admitted.

    Args:
        quota: jobs of the same owner that may wait or run; None for any number.
    """

    new: NewJob
    quota: int | None = None


class AdmissionControl:
    """Admits one request after the other; those admitted count towards the limits of the next.

    Args:
        session: a transaction; nothing may be added to the queue beside it.
        queue_limit: jobs that may wait, of all owners together, offline ones aside; see `queue_share`.
    """

    def __init__(self, session: Session, queue_limit: int) -> None:
        self._session = session
        self._limit = queue_limit
        self.waiting = transitions.count_waiting(session)
        """Waiting jobs of each class, before the first was admitted."""
        self._now = Counter(self.waiting)
        self._admitted: Counter[str] = Counter()

    def admit_or_raise(self, request: AdmissionRequest) -> str | None:
        """Admit a request and store its idempotency key; the id of the job that the key made before, if it did.

        Raises:
            Conflict: the key was used with another request.
            QueueFull, QuotaFull: a limit is reached.
        """
        new = request.new
        repeat = None
        if new.idempotency_key is not None:
            repeat = IdempotentRequest(new.owner, new.idempotency_key, new.body_hash)
        previous_id = find_previous(self._session, repeat)
        if previous_id is not None:
            return previous_id
        self.check(new.owner, new.weight, request.quota)
        remember(self._session, repeat, new.id)
        self._now[PRIORITIES[new.priority]] += 1
        self._admitted[new.owner] += 1
        return None

    def check(self, owner: str, weight: float, quota: int | None) -> None:
        """Raise QueueFull or QuotaFull where one more would exceed a limit.

        A full queue still admits who has less waiting than their share of it (`queue_share`).
        """
        if transitions.without_offline(self._now) >= self._limit:
            more, unsaved = self._admitted[owner] + 1, self._admitted.total() - self._admitted[owner]
            check_share(self._session, owner, weight, more, self._limit, offline=False, unsaved=unsaved)
        check_quota(self._session, owner, quota, self._admitted[owner] + 1)


_MOST_WAITING: Final = 3
"""Times the queue's limit that all owners together may have waiting by their shares."""


def queue_share(limit: int, owner: str, weight: float, waiting: Mapping[str, float], others: int = 0) -> int:
    """The jobs that an owner may have waiting although the queue is full: its part by weight of those who wait.

    So one key's flood refuses nobody else. Keys that come one after the other and all fill their shares would add up to
    `limit` * (1 + ln n) jobs: so a share is also at most half of what is left until three times the limit, which is
    never exceeded.

    Args:
        waiting: the weight of each owner that has jobs waiting.
        others: how many jobs wait that are not the owner's.
    """
    left = _MOST_WAITING * limit - others
    if left <= 0:
        return 0
    total = sum(value for other, value in waiting.items() if other != owner) + weight
    return max(1, min(math.floor(limit * weight / total), left // 2))


def check_share(
    session: Session, owner: str, weight: float, more: int, limit: int, *, offline: bool, unsaved: int = 0
) -> None:
    """Raise QueueFull if so many more jobs would be more than the owner's share of a full queue.

    Args:
        unsaved: jobs of others that this transaction admitted and has not inserted yet.
        offline: of the offline queue, which has a limit of its own.
    """
    of_class = JobRow.priority == OFFLINE if offline else JobRow.priority > OFFLINE
    query = select(JobRow.owner, func.count(), func.max(JobRow.weight)).where(JobRow.status == "queued", of_class)
    rows = session.execute(query.group_by(JobRow.owner)).all()
    own = sum(count for other, count, _ in rows if other == owner)
    weights = {other: float(value) for other, _, value in rows}
    others = sum(count for other, count, _ in rows if other != owner) + unsaved
    if own + more > queue_share(limit, owner, weight, weights, others):
        raise QueueFull(limit, retry_after(session))


def check_quota(session: Session, owner: str, quota: int | None, more: int) -> None:
    """Raise QuotaFull if so many more jobs would be more than the owner may have waiting and running."""
    if quota is None:
        return
    open_jobs = select(func.count()).select_from(JobRow)
    open_jobs = open_jobs.where(JobRow.owner == owner, JobRow.status.in_(("queued", "in_progress")))
    if (session.scalar(open_jobs) or 0) + more > quota:
        raise QuotaFull(quota, retry_after(session))


def retry_after(session: Session) -> int:
    """Seconds until the queue should have room: what a job takes, by the newest completed ones."""
    return min(max(1, math.ceil(typical_seconds(session))), _LONGEST_WAIT_S)


def typical_seconds(session: Session) -> float:
    """What a job takes, by the newest completed ones; a guess where there is none."""
    recent = (
        select(JobRow.completed_at - JobRow.started_at)
        .where(JobRow.status == "completed")
        .order_by(JobRow.completed_at.desc())
        .limit(_RECENT)
    )
    took = [seconds for seconds in session.scalars(recent) if seconds is not None]
    return sum(took) / len(took) if took else _UNKNOWN_JOB_S

"""New jobs, many at once: their rows and first events go into the database in two statements, however many they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final, cast

from sqlalchemy import Table, insert
from sqlalchemy.orm import Session
from stillmotion.types import Job

from serving.jobs import changes
from serving.jobs.records import PRIORITIES, NewJob, Terms, to_wire
from serving.jobs.tables import EventRow, JobRow

_FIRST_EVENT = 1
# Into the tables rather than through the mapped classes, whose bookkeeping cost as much as the insertion.
_NEW_JOBS: Final = insert(cast(Table, JobRow.__table__))
_NEW_EVENTS: Final = insert(cast(Table, EventRow.__table__))
_UNSET: Final = dict.fromkeys(attribute.key for attribute in JobRow.__mapper__.column_attrs)


def add_jobs(
    session: Session, new: Sequence[NewJob], now: float, terms: Terms, waiting: Mapping[int, int]
) -> list[Job]:
    """Write queued jobs in this order, each with the event that tells of it.

    Args:
        now: Unix seconds.
        waiting: how many jobs of each class wait already (`changes.count_waiting`), which gives their places.
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
    connection = changes.tables(session)
    connection.execute(_NEW_JOBS, [{"metadata": row.pop("labels"), **row} for row in rows])
    connection.execute(_NEW_EVENTS, events)
    return jobs


def _values(new: NewJob, now: float, terms: Terms) -> dict[str, Any]:
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
        "webhook_url": None if new.webhook is None else new.webhook.url,
        "webhook_secret": None if new.webhook is None else new.webhook.secret,
        "batch_id": None if new.batch is None else new.batch.batch_id,
        "batch_row": None if new.batch is None else new.batch.row,
        "custom_id": None if new.batch is None else new.batch.custom_id,
    }

"""Who may come in: judged within the transaction that lets them in, so that limits hold whoever else comes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from serving.jobs import changes
from serving.jobs.errors import QueueFull, QuotaFull
from serving.jobs.idempotency import Repeat, made_before, remember
from serving.jobs.records import PRIORITIES, NewJob
from serving.jobs.tables import JobRow

_RECENT = 20
_UNKNOWN_JOB_S = 5.0
_LONGEST_WAIT_S = 600


@dataclass(frozen=True, slots=True)
class Asked:
    """One who would come in.

    Args:
        quota: jobs of the same owner that may wait or run; None for any number.
    """

    new: NewJob
    quota: int | None = None


class Door:
    """Judges one after the other; those it has let in count for those behind them.

    Args:
        session: a transaction; nothing may be added to the queue beside it.
        queue_limit: jobs that may wait, of all owners together, offline ones aside.
    """

    def __init__(self, session: Session, queue_limit: int) -> None:
        self._session = session
        self._limit = queue_limit
        self.waiting = changes.count_waiting(session)
        """Of each class, before the first was let in."""
        self._now = Counter(self.waiting)
        self._let_in: Counter[str] = Counter()

    def judge(self, asked: Asked) -> str | None:
        """Let one in and note their idempotency key; the id of the job that the key made before, if it did.

        Raises:
            Conflict: the key was used with another request.
            QueueFull, QuotaFull: no place is free.
        """
        new = asked.new
        repeat = None
        if new.idempotency_key is not None:
            repeat = Repeat(new.owner, new.idempotency_key, new.body_hash)
        known = made_before(self._session, repeat)
        if known is not None:
            return known
        self.check(new.owner, asked.quota)
        remember(self._session, repeat, new.id)
        self._now[PRIORITIES[new.priority]] += 1
        self._let_in[new.owner] += 1
        return None

    def check(self, owner: str, quota: int | None) -> None:
        """Raise QueueFull or QuotaFull where no place is free for one more."""
        if changes.without_offline(self._now) >= self._limit:
            raise QueueFull(self._limit, retry_after(self._session))
        check_quota(self._session, owner, quota, self._let_in[owner] + 1)


def check_quota(session: Session, owner: str, quota: int | None, more: int) -> None:
    """Raise QuotaFull if so many more jobs would be more than the owner may have waiting and running."""
    if quota is None:
        return
    open_jobs = select(func.count()).select_from(JobRow)
    open_jobs = open_jobs.where(JobRow.owner == owner, JobRow.status.in_(("queued", "in_progress")))
    if (session.scalar(open_jobs) or 0) + more > quota:
        raise QuotaFull(quota, retry_after(session))


def retry_after(session: Session) -> int:
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

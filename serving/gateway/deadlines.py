"""Deadline feasibility and Retry-After, from the measured seconds of compute that lie ahead (the backlog).

On one device n clips take about n times as long as one, whatever is batched (docs/speed.md measures where they take
less; then these figures are too careful, never too hopeful). So seconds add up, and jobs that run at once share the
device evenly. The backlog is read from the job store only where a deadline or a full queue needs it, and at most once
a second, so that a storm of refusals costs one query a second.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select

from model.errors import InvalidRequest, StillmotionError
from serving.background import run_in_thread
from serving.engine.protocol import Engine
from serving.interpolation.progress import estimate
from serving.jobs.database import Database
from serving.jobs.records import params_from_json
from serving.jobs.tables import JobRow

_LONGEST_RETRY_S: Final = 3600


class DeadlineInfeasible(StillmotionError):
    """The job would not be done in time.

    Args:
        deadline_s: seconds from now by which it is wanted.
        expected_s: seconds from now by which it would be done.
    """

    code = "deadline_infeasible"

    def __init__(self, deadline_s: float, expected_s: float) -> None:
        seconds_needed = math.ceil(expected_s)
        super().__init__(
            f"the result is wanted within {deadline_s:g} s, and with what waits before it would take about "
            f"{seconds_needed} s: ask for a deadline_s of {seconds_needed} or more, for fewer steps or frames, "
            "or for a higher priority",
            param="deadline_s",
        )


@dataclass(frozen=True, slots=True)
class PendingWork:
    """One job that has not ended.

    Args:
        seconds: of compute it still needs, on an idle engine; None while nothing was measured.
        priority: higher goes first.
    """

    seconds: float | None
    priority: int = 1


@dataclass(frozen=True, slots=True)
class Backlog:
    """What an engine has before it."""

    running: Sequence[PendingWork] = ()
    waiting: Sequence[PendingWork] = ()


def seconds_until_place(backlog: Backlog) -> float | None:
    """When a waiting job should leave the queue: when the first of the running ones ends.

    They share the device evenly, so the shortest of n ends after n times what it needs. None while unknown.
    """
    needed = [work.seconds for work in backlog.running]
    known = [seconds for seconds in needed if seconds is not None]
    if not needed:  # the engine is about to take one, or is not warm yet
        return 1.0
    return min(known) * len(needed) if known else None


def seconds_until_done(backlog: Backlog, own_s: float | None, priority: int) -> float | None:
    """When a job that comes now should be done: what runs, what waits in its class or above, and itself.

    None while its own time, or that of anything before it, is unknown.
    """
    before = [*backlog.running, *(work for work in backlog.waiting if work.priority >= priority)]
    seconds = [own_s, *(work.seconds for work in before)]
    known = [value for value in seconds if value is not None]
    return sum(known) if len(known) == len(seconds) else None


def check_deadline(backlog: Backlog, own_s: float | None, priority: int, deadline_s: float | None) -> None:
    """Refuse what would come too late; what is unknown is let in.

    Raises:
        DeadlineInfeasible: it would be done after `deadline_s` seconds.
    """
    if deadline_s is None:
        return
    if own_s is not None and own_s > deadline_s:  # not even on an idle engine
        raise DeadlineInfeasible(deadline_s, seconds_until_done(backlog, own_s, priority) or own_s)
    expected = seconds_until_done(backlog, own_s, priority)
    if expected is not None and expected > deadline_s:
        raise DeadlineInfeasible(deadline_s, expected)


def retry_after(backlog: Backlog, otherwise_s: float) -> int:
    """Whole seconds for a Retry-After: when a place should be free; `otherwise_s` while nothing was measured."""
    seconds = seconds_until_place(backlog)
    return min(max(1, math.ceil(otherwise_s if seconds is None else seconds)), _LONGEST_RETRY_S)


_FRESH_S: Final = 1.0


class BacklogReader:
    """Reads the backlog.

    Args:
        database: with the jobs.
        engine: what estimates them.
        clock: seconds, monotonic.
    """

    def __init__(self, database: Database, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._engine = engine
        self._clock = clock
        self._read_at = -math.inf
        self._found = Backlog()
        self._reading = asyncio.Lock()

    async def now(self, *, fresh: bool = False) -> Backlog:
        """The backlog, a second old at most; `fresh`: as it is."""
        async with self._reading:
            if fresh or self._clock() - self._read_at >= _FRESH_S:
                self._found = await run_in_thread(self._read)
                self._read_at = self._clock()
            return self._found

    def waiting(self) -> list[tuple[int, float | None]]:
        """Class and seconds of each job that waits now; blocks."""
        return [(work.priority, work.seconds) for work in self._read().waiting]

    def _read(self) -> Backlog:
        columns = (JobRow.status, JobRow.task, JobRow.model, JobRow.params, JobRow.priority, JobRow.progress)
        running: list[PendingWork] = []
        waiting: list[PendingWork] = []
        with self._database.read() as session:
            query = select(*columns).where(JobRow.status.in_(("queued", "in_progress")))
            for status, task, model, params, priority, progress in session.execute(query):
                full = self._seconds(task, model, params)
                if status == "queued":
                    waiting.append(PendingWork(full, priority))
                else:
                    running.append(PendingWork(None if full is None else full * (1 - progress / 100), priority))
        return Backlog(running, waiting)

    def _seconds(self, task: str, model: str, params: dict[str, Any]) -> float | None:
        try:
            return estimate(self._engine, model, *params_from_json(task, params))
        except (InvalidRequest, KeyError, TypeError):  # stored by another version, or for a checkpoint not served here
            return None

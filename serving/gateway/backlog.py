"""What the engine has before it, read from the job store and measured by the engine; kept for a second.

Read only where it is asked for (a deadline, a full queue), so an ordinary submission pays nothing; and under a storm
of refusals once a second, not once a refusal.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import select

from model.errors import InvalidRequest
from serving.chain.estimate import estimate
from serving.engine.protocol import Engine
from serving.gateway.admission import Backlog, Work
from serving.jobs.asked import asked
from serving.jobs.database import Database
from serving.jobs.tables import JobRow
from serving.jobs.threads import in_thread

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
                self._found = await in_thread(self._read)
                self._read_at = self._clock()
            return self._found

    def _read(self) -> Backlog:
        columns = (JobRow.status, JobRow.task, JobRow.model, JobRow.params, JobRow.priority, JobRow.progress)
        running: list[Work] = []
        waiting: list[Work] = []
        with self._database.read() as session:
            query = select(*columns).where(JobRow.status.in_(("queued", "in_progress")))
            for status, task, model, params, priority, progress in session.execute(query):
                whole = self._seconds(task, model, params)
                if status == "queued":
                    waiting.append(Work(whole, priority))
                else:
                    running.append(Work(None if whole is None else whole * (1 - progress / 100), priority))
        return Backlog(running, waiting)

    def _seconds(self, task: str, model: str, params: dict[str, Any]) -> float | None:
        try:
            return estimate(self._engine, model, *asked(task, params))
        except (InvalidRequest, KeyError, TypeError):  # stored by another version, or for a checkpoint not served here
            return None

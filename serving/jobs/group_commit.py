"""Group commit: submissions that arrive together share one transaction, and each is answered by itself.

Who arrives while a transaction is written waits for the next one, which takes all that wait: an idle service adds no
delay, a busy one commits once for many. A submission that will be refused should not cost the decoding of its picture,
and one that will be admitted should not cost a query beforehand. So the check before the work is skipped as long as
submissions are admitted, and made once one was refused. The transaction decides in any case.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time

from stillmotion.types import Job

from serving.background import run_in_thread, shielded
from serving.jobs.admission import AdmissionRequest
from serving.jobs.errors import QueueFull
from serving.jobs.records import NewJob
from serving.jobs.store import JobStore

_log = logging.getLogger(__name__)
_AT_ONCE = 64
"""Jobs a transaction: others must not wait long for it."""
_GATHER_S = 0.005
"""Between two transactions, so that the second has more to take: most of what one costs, it costs once."""
_ROOMY_S = 1.0
"""A place that was free is thought to be free for so long."""
_Made = tuple[Job, bool]


class GroupCommit:
    """Creates jobs.

    Args:
        store: where they are stored.
        queue_limit: jobs that may wait.
    """

    def __init__(self, store: JobStore, queue_limit: int) -> None:
        self._store = store
        self._limit = queue_limit
        self._roomy_until = -math.inf
        self._waiting: list[tuple[AdmissionRequest, asyncio.Future[_Made]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def admit(self, new: NewJob, quota: int | None) -> Job | None:
        """Whether this job may come in, as far as is known yet. Returns and raises as `JobStore.admit`."""
        if new.idempotency_key is None and time.monotonic() < self._roomy_until:
            return None
        request = (new.idempotency_key, new.body_hash, self._limit, new.owner, quota, new.weight)
        return await run_in_thread(self._store.admit, *request)

    async def create(self, new: NewJob, quota: int | None) -> _Made:
        """Store a queued job, as `JobStore.create` does; ends also if the caller is cancelled meanwhile."""
        return await shielded(self._create(AdmissionRequest(new, quota)))

    async def _create(self, request: AdmissionRequest) -> _Made:
        done: asyncio.Future[_Made] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="admissions")
        return await done

    async def _write(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
                await self._write_some(group)
                await asyncio.sleep(_GATHER_S)
        finally:
            self._writing = None

    async def _write_some(self, group: list[tuple[AdmissionRequest, asyncio.Future[_Made]]]) -> None:
        try:
            outcomes = await run_in_thread(self._store.create_all, [request for request, _ in group], self._limit)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for it
            if len(group) == 1:
                group[0][1].set_exception(error)
                return
            # One of them may be at fault, and the others must not suffer for it.
            _log.warning("%d submissions could not be stored together (%s); one by one now", len(group), error)
            for one in group:
                await self._write_some([one])
            return
        refused = any(isinstance(outcome, QueueFull) for outcome in outcomes)
        self._roomy_until = -math.inf if refused else time.monotonic() + _ROOMY_S
        for (_, done), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)

"""The periodic sweep: expiry, removal after the time jobs are kept, and files that belong to no job.

Rows go first: files without a job are found by the next sweep, a job without its files would never heal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from serving.jobs.artifacts import Artifacts
from serving.jobs.bell import Bell
from serving.jobs.retention import Retention
from serving.jobs.store import JobStore
from serving.jobs.threads import in_thread

_log = logging.getLogger(__name__)
_STRAYS_EVERY_S: Final = 3600.0


class Janitor:
    """Sweeps until it is stopped.

    Args:
        retention, store, artifacts: what is swept.
        bell: rung for every job that changes.
        every_s: seconds between two sweeps.
    """

    def __init__(
        self, retention: Retention, store: JobStore, artifacts: Artifacts, bell: Bell, every_s: float = 30.0
    ) -> None:
        self._retention = retention
        self._store = store
        self._artifacts = artifacts
        self._bell = bell
        self._every_s = every_s
        self._strays_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to sweep, at once and then periodically."""
        self._task = asyncio.create_task(self._run(), name="janitor")

    async def stop(self) -> None:
        """Stop; a sweep that is on ends first."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def sweep(self) -> None:
        """One sweep: everything whose time has come."""
        while expired := await in_thread(self._retention.expire):
            for job in expired:
                self._bell.ring(job.id)
        while removed := await in_thread(self._retention.remove_ended):
            for job_id in removed:
                await in_thread(self._artifacts.remove, job_id)
                self._bell.ring(job_id)
        if time.monotonic() - self._strays_at >= _STRAYS_EVERY_S:
            self._strays_at = time.monotonic()
            known = await in_thread(self._store.ids)
            for name in await in_thread(self._artifacts.sweep, known):
                _log.warning("removed the files of %s, which is no job", name)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001 - the boundary: the next sweep may do better
                _log.exception("the sweep was cut short; the next one goes on")
            await asyncio.sleep(self._every_s)

"""The dispatcher: leases waiting jobs as the engine has capacity, sends heartbeats, drains at shutdown.

One asyncio task looks for work, one prolongs the leases (and reclaims those of lost servers), and one more per running
job is its `JobRunner`. Several servers may do so on one database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from serving.background import run_in_thread
from serving.engine.protocol import Engine
from serving.jobs.artifacts import Artifacts
from serving.jobs.errors import LeaseLost
from serving.jobs.leases import Leases
from serving.jobs.notifier import Notifier, wait_notified
from serving.jobs.records import LeasedJob
from serving.jobs.runner import JobRunner, RunState

_log = logging.getLogger(__name__)
QUEUE_TOPIC: Final = "queue"
"""The topic of: there may be work."""
_LOOK_AGAIN_S: Final = 1.0
_LAST_WORDS_S: Final = 0.5
"""Seconds for what a stopped engine said at its end to be written down."""


class Dispatcher:
    """Runs jobs.

    Args:
        engine: what serves them; started and stopped by its owner.
        leases, artifacts: where progress and files are stored.
        notifier: notified of a job at every change, and by others of QUEUE_TOPIC when a job was queued.
        step_interval_s: progress within a phase is written at most this often.
    """

    def __init__(
        self, engine: Engine, leases: Leases, artifacts: Artifacts, notifier: Notifier, step_interval_s: float = 0.25
    ) -> None:
        self._engine = engine
        self._leases = leases
        self._notifier = notifier
        self._follower = JobRunner(engine, leases, artifacts, notifier, step_interval_s)
        self._runs: dict[str, RunState] = {}
        self._following: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether the service is about to stop and takes no new work."""
        return self._draining

    async def start(self) -> None:
        """Put back what servers that are gone left running, and begin to look for work."""
        await self._reclaim()
        self._loops = [
            asyncio.create_task(self._look_for_work(), name="dispatcher"),
            asyncio.create_task(self._keep_leases(), name="leases"),
        ]

    def refuse_work(self) -> None:
        """Take no more work; what runs goes on."""
        self._draining = True

    async def drain(self, grace_s: float) -> None:
        """Take no more work, and come back when what runs has ended or the time is over."""
        self.refuse_work()
        if self._following:
            _log.info("stopping: %d jobs have %g s to end", len(self._following), grace_s)
            await asyncio.wait(self._following, timeout=grace_s)

    async def stop(self) -> None:
        """Let go of every job, after the engine was stopped: those unfinished go back into the queue."""
        self.refuse_work()
        if self._following:
            await asyncio.wait(self._following, timeout=_LAST_WORDS_S)
        left = list(self._runs.values())
        tasks = [*self._loops, *self._following]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loops = []
        for run in left:
            await self._release(run.job)

    def cancel(self, job_id: str) -> None:
        """Ask a running job to stop at the next step boundary; one that another server runs hears of it there."""
        run = self._runs.get(job_id)
        if run is not None:
            run.stop.set()
            self._engine.cancel(job_id)

    async def _look_for_work(self) -> None:
        with self._notifier.subscribe(QUEUE_TOPIC) as notified:
            while not self._draining:
                notified.clear()
                try:
                    await self._fill()
                except Exception:  # noqa: BLE001 - the boundary: without this loop nothing would run any more
                    _log.exception("no job could be taken from the queue; trying again")
                await wait_notified(notified, _LOOK_AGAIN_S)

    async def _fill(self) -> None:
        """Lease jobs until the engine is full or none waits.

        Offline jobs fill what is idle only: they keep no place from the others.
        """
        while self._engine.ready and not self._draining:
            busy = sum(run.job.share.priority != "offline" for run in self._runs.values())
            if busy >= self._engine.capacity:
                return
            # A job whose lease was lost waits again, while the engine may still be at it here: others may take it.
            job = await run_in_thread(
                self._leases.acquire, offline=len(self._runs) < self._engine.capacity, except_ids=tuple(self._runs)
            )
            if job is None:
                return
            if self.draining:  # began while the thread was at it
                await self._release(job)
                return
            self._runs[job.id] = RunState(job)
            self._notifier.notify(job.id)
            task = asyncio.create_task(self._follow(self._runs[job.id]), name=job.id)
            self._following.add(task)
            task.add_done_callback(self._following.discard)

    async def _follow(self, run: RunState) -> None:
        try:
            await self._follower.follow(run)
        finally:
            del self._runs[run.job.id]
            self._notifier.notify(QUEUE_TOPIC)

    async def _keep_leases(self) -> None:
        """Say every second that this server lives; learn what callers or other servers did to its jobs."""
        reclaimed_at = time.monotonic()
        while True:
            await asyncio.sleep(min(_LOOK_AGAIN_S, self._leases.lease_s / 3))
            try:
                runs = list(self._runs.values())
                heartbeat = await run_in_thread(self._leases.heartbeat, [run.job for run in runs])
                for run in runs:
                    # Given back and leased again meanwhile, it is another run, of which the pulse says nothing.
                    if run.job.id in heartbeat.to_stop | heartbeat.lost and self._runs.get(run.job.id) is run:
                        self.cancel(run.job.id)
                if time.monotonic() - reclaimed_at >= self._leases.lease_s / 3:
                    reclaimed_at = time.monotonic()
                    await self._reclaim()
            except Exception:  # noqa: BLE001 - the boundary: without this loop every lease would run out
                _log.exception("the leases could not be kept; trying again")

    async def _reclaim(self) -> None:
        for job in await run_in_thread(self._leases.reclaim):
            _log.warning("job %s was interrupted; it is %s now", job.id, job.status)
            self._notifier.notify(job.id)
            self._notifier.notify(QUEUE_TOPIC)

    async def _release(self, job: LeasedJob) -> None:
        try:
            await run_in_thread(self._leases.release, job)
        except LeaseLost:
            _log.debug("job %s has ended or runs elsewhere", job.id)
        self._notifier.notify(job.id)

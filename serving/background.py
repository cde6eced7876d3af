"""Background tasks of the event loop: blocking calls in threads that are never abandoned, and periodic work.

A database transaction must end before the database is closed, so a cancelled caller waits for its thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_log = logging.getLogger(__name__)


async def run_in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `work` in a thread, to its end: a transaction must not outlive the database it is made in."""
    return await shielded(asyncio.to_thread(work, *args, **kwargs))


async def shielded(work: Coroutine[Any, Any, R]) -> R:
    """Await `work`; if the caller is cancelled, it still ends before the cancellation goes on."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            raise asyncio.CancelledError from task.exception()
        raise


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Return when the event is set, or after `timeout_s` seconds."""
    try:
        # not wait_for: in Python 3.11 it loses a cancellation that comes together with the event
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


class Periodic:
    """Work that is repeated until it is stopped; a failed round is logged and the next one tries again.

    Args:
        work: one round.
        every_s: seconds between the end of a round and the next one.
        name: of the task, in the log.
    """

    def __init__(self, work: Callable[[], Awaitable[object]], every_s: float, name: str) -> None:
        self._work = work
        self._every_s = every_s
        self._name = name
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin with the first round."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Begin no further round; a thread of the present one ends first."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def wake(self) -> None:
        """Begin the next round at once."""
        self._woken.set()

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self._work()
            except Exception:  # noqa: BLE001 - the boundary: the next round may do better
                _log.exception("%s: a round failed; the next one begins in %g s", self._name, self._every_s)
            await wait_for_event(self._woken, self._every_s)

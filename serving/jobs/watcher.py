"""Rings the bell for changes that other servers make to jobs somebody here waits for.

One question a moment for all of them together, however many streams are open; it works alike on every database.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from serving.jobs.bell import Bell
from serving.jobs.store import JobStore
from serving.jobs.threads import in_thread

_log = logging.getLogger(__name__)
_AT_ONCE: Final = 500
"""Ids a query: databases limit a statement's parameters."""


class Watcher:
    """Looks at the jobs that are listened for.

    Args:
        store: where they are.
        bell: with the listeners; topics that are no jobs' ids are left alone.
        every_s: seconds between two looks.
    """

    def __init__(self, store: JobStore, bell: Bell, every_s: float = 0.5) -> None:
        self._store = store
        self._bell = bell
        self._every_s = every_s
        self._known: dict[str, int | None] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="watcher")

    async def stop(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def look(self) -> None:
        """Ring for every job that changed, or went, since the last look."""
        topics = [topic for topic in self._bell.topics() if topic.startswith("job_")]
        now: dict[str, int | None] = dict.fromkeys(topics)
        for start in range(0, len(topics), _AT_ONCE):
            now |= await in_thread(self._store.newest_events, topics[start : start + _AT_ONCE])
        for topic, newest in now.items():
            # A listener that is new has looked before it waits, perhaps just before the change: ring once for it too.
            if topic not in self._known or self._known[topic] != newest:
                self._bell.ring(topic)
        self._known = now

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - the boundary: listeners look by themselves too, only later
                _log.exception("the look for other servers' changes failed; trying again")
            await asyncio.sleep(self._every_s)

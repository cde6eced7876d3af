"""Wakes whoever waits for news of a job in this process.

The database is the truth: a waiter looks there again when the bell rings, or after a while in case another process
made the change.

Rings the bell for changes that other servers make to jobs somebody here waits for.

One question a moment for all of them together, however many streams are open; it works alike on every database.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from serving.background import run_in_thread
from serving.jobs.store import JobStore


class Notifier:
    """One bell for every job, on one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def listen(self, topic: str) -> Iterator[asyncio.Event]:
        """An event that is set at every ring from now on; the listener clears it before it looks."""
        heard = asyncio.Event()
        self._waiting.setdefault(topic, set()).add(heard)
        try:
            yield heard
        finally:
            self._waiting[topic].discard(heard)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def topics(self) -> list[str]:
        """What is listened for now."""
        return list(self._waiting)

    def ring(self, topic: str) -> None:
        """Wake the topic's listeners."""
        for heard in self._waiting.get(topic, ()):
            heard.set()


async def wait_heard(heard: asyncio.Event, timeout_s: float) -> None:
    """Return at the next ring, or after `timeout_s` seconds."""
    try:
        # not wait_for: in Python 3.11 it loses a cancellation that comes together with the ring
        async with asyncio.timeout(timeout_s):
            await heard.wait()
    except TimeoutError:
        return


_log = logging.getLogger(__name__)
_AT_ONCE: Final = 500
"""Ids a query: databases limit a statement's parameters."""


class RemoteChangePoller:
    """Looks at the jobs that are listened for.

    Args:
        store: where they are.
        bell: with the listeners; topics that are no jobs' ids are left alone.
        every_s: seconds between two looks.
    """

    def __init__(self, store: JobStore, bell: Notifier, every_s: float = 0.5) -> None:
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
            now |= await run_in_thread(self._store.newest_events, topics[start : start + _AT_ONCE])
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

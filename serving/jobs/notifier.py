"""Publish/subscribe within the process: who waits for a job's next event is woken when it changes.

The database is the truth, a notification only a hint: a subscriber reads the database again when it is woken, and
after a while in any case. `RemoteChangePoller` notifies of changes that other servers made, with one query a round for
all subscribers together; it works alike on every database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from serving.background import Periodic, run_in_thread
from serving.background import wait_for_event as wait_notified
from serving.jobs.store import JobStore

__all__ = ["Notifier", "RemoteChangePoller", "wait_notified"]
_IDS_PER_QUERY: Final = 500
"""Databases limit a statement's parameters."""


class Notifier:
    """Topics (job ids, mostly) and the events that wait for them, on one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def subscribe(self, topic: str) -> Iterator[asyncio.Event]:
        """An event that is set at every notification from now on; the subscriber clears it before it looks."""
        notified = asyncio.Event()
        self._waiting.setdefault(topic, set()).add(notified)
        try:
            yield notified
        finally:
            self._waiting[topic].discard(notified)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def topics(self) -> list[str]:
        """The topics that have subscribers now."""
        return list(self._waiting)

    def notify(self, topic: str) -> None:
        """Wake the topic's subscribers."""
        for notified in self._waiting.get(topic, ()):
            notified.set()


class RemoteChangePoller(Periodic):
    """Notifies of changes that other servers made to jobs with subscribers here.

    Args:
        store: where the jobs are.
        notifier: with the subscribers; topics that are no jobs' ids are left alone.
        every_s: seconds between two rounds.
    """

    def __init__(self, store: JobStore, notifier: Notifier, every_s: float = 0.5) -> None:
        super().__init__(self.look, every_s, "remote changes")
        self._store = store
        self._notifier = notifier
        self._newest: dict[str, int | None] = {}

    async def look(self) -> None:
        """Notify of every job that changed, or was removed, since the last round."""
        topics = [topic for topic in self._notifier.topics() if topic.startswith("job_")]
        newest: dict[str, int | None] = dict.fromkeys(topics)
        for start in range(0, len(topics), _IDS_PER_QUERY):
            newest |= await run_in_thread(self._store.newest_events, topics[start : start + _IDS_PER_QUERY])
        for topic, event in newest.items():
            # A new subscriber has looked before it waits, perhaps just before the change: notify it once too.
            if topic not in self._newest or self._newest[topic] != event:
                self._notifier.notify(topic)
        self._newest = newest

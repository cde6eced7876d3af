"""Wakes whoever waits for news of a job in this process.

The database is the truth: a waiter looks there again when the bell rings, or after a while in case another process
made the change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Bell:
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

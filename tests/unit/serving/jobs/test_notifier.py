"""The bell wakes those who listen, and waiting can always be cancelled."""

from __future__ import annotations

import asyncio
import time

import pytest

from serving.background import run_in_thread
from serving.jobs.notifier import Notifier, wait_notified


async def test_a_ring_wakes_every_listener_of_that_topic_only() -> None:
    notifier = Notifier()
    with notifier.subscribe("a") as first, notifier.subscribe("a") as second, notifier.subscribe("b") as other:
        notifier.notify("a")
        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
        await wait_notified(first, 10)
    notifier.notify("a")
    assert notifier._waiting == {}


async def test_a_wait_ends_in_time() -> None:
    with Notifier().subscribe("a") as notified:
        began = time.monotonic()
        await wait_notified(notified, 0.02)
        assert 0.01 < time.monotonic() - began < 5
        assert not notified.is_set()


async def test_a_cancellation_that_comes_with_the_ring_is_not_lost() -> None:
    notifier = Notifier()
    with notifier.subscribe("a") as notified:
        waiting = asyncio.create_task(wait_notified(notified, 60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        notifier.notify("a")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_work_in_a_thread_ends_before_its_cancellation_goes_on() -> None:
    done = []

    def work() -> None:
        time.sleep(0.05)
        done.append(True)

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]


async def test_what_a_thread_raises_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(divmod, 1, 0)

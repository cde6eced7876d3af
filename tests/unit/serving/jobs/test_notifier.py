"""The bell wakes those who listen, and waiting can always be cancelled."""

from __future__ import annotations

import asyncio
import time

import pytest

from serving.background import run_in_thread
from serving.jobs.notifier import Notifier, wait_heard


async def test_a_ring_wakes_every_listener_of_that_topic_only() -> None:
    bell = Notifier()
    with bell.listen("a") as first, bell.listen("a") as second, bell.listen("b") as other:
        bell.ring("a")
        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
        await wait_heard(first, 10)
    bell.ring("a")
    assert bell._waiting == {}


async def test_a_wait_ends_in_time() -> None:
    with Notifier().listen("a") as heard:
        began = time.monotonic()
        await wait_heard(heard, 0.02)
        assert 0.01 < time.monotonic() - began < 5
        assert not heard.is_set()


async def test_a_cancellation_that_comes_with_the_ring_is_not_lost() -> None:
    bell = Notifier()
    with bell.listen("a") as heard:
        waiting = asyncio.create_task(wait_heard(heard, 60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bell.ring("a")
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

"""Blocking work beside the event loop, never abandoned half way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


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

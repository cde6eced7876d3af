"""Orders to a running Triton server: load and unload models, tell what it serves, empty it before it ends. No torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from serving.triton.channel import Channel, ServerLost
from serving.triton.wire import Kind, Status, pack_control

_CLIENT: Final = "control"
_LOOK_S: Final = 0.2
_ANSWER_S: Final = 60.0


async def load(url: str, name: str) -> list[Status]:
    """Load a model, or the version its configuration names now; back once it is ready.

    What runs on the version before goes on to its end there.

    Raises:
        ServerLost: the server is not there, or the model does not load; what was served before still is.
    """
    async with _connected(url) as channel:
        await channel.load(name)
        return [status for status in await _ask_all(channel, "status") if status.entry["name"] == name]


async def unload(url: str, name: str) -> None:
    """Unload a model; what it is at goes on to its end. Raises ServerLost."""
    async with _connected(url) as channel:
        await channel.unload(name)


async def statuses(url: str) -> list[Status]:
    """What every model of ours in the server says. Raises ServerLost."""
    async with _connected(url) as channel:
        return await _ask_all(channel, "status")


async def empty(url: str, grace_s: float) -> None:
    """Take no more work, give what runs `grace_s` seconds to end, and checkpoint the rest.

    A server that does not answer (any more) has nothing to be emptied of.
    """
    async with _connected(url) as channel:
        try:
            until = time.monotonic() + grace_s
            left = await _ask_all(channel, "drain")
            while any(status.in_flight for status in left) and time.monotonic() < until:
                await asyncio.sleep(_LOOK_S)
                left = await _ask_all(channel, "status")
            await _ask_all(channel, "stop")
        except (ServerLost, TimeoutError):
            return


async def _ask_all(channel: Channel, kind: Kind) -> list[Status]:
    async with asyncio.timeout(_ANSWER_S):
        ours = [version for version in await channel.versions() if await channel.is_ours(*version)]
        return [await channel.ask(name, number, pack_control(kind, _CLIENT)) for name, number in ours]


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Channel]:
    channel = Channel(url)
    try:
        yield channel
    finally:
        await channel.close()

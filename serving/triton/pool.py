"""The Triton servers behind a gateway, watched: which live, what they serve, how much work they have. No torch."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from model.catalog import ModelEntry
from model.errors import CheckpointError
from serving.triton.channel import Channel, ServerLost
from serving.triton.described import entry_of
from serving.triton.dispatch import Place
from serving.triton.wire import Status, pack_control

_log = logging.getLogger(__name__)
LOOK_S: Final = 1.0
"""Seconds between two looks at a server."""
ANSWER_S: Final = 10.0
"""Seconds a server has to answer a look."""
LOST_S: Final = 20.0
"""A server silent for so long is given up, and its jobs go elsewhere; one whose connection breaks, at once."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """A version of a model on a server, as it last described itself."""

    entry: ModelEntry
    status: Status
    seen: float


@dataclass(slots=True, eq=False)
class Work:
    """A job of ours on a server; `left_s` as said at `told_at`."""

    left_s: float
    told_at: float = field(default_factory=time.monotonic)

    def tell(self, left_s: float) -> None:
        """So much is left from now on."""
        self.left_s, self.told_at = left_s, time.monotonic()

    def left(self) -> float:
        """Seconds left by now."""
        return max(0.0, self.left_s - (time.monotonic() - self.told_at))


@dataclass(slots=True, eq=False)
class Server:
    """One server.

    Args:
        usable: whether it answered the last look, and nothing broke since.
        heard: when it last answered.
        hosted: what it serves, by name and version number.
        foreign: models in it that are none of ours.
        work: our jobs there.
        lost: set while it is given up; streams that wait on it end.
    """

    channel: Channel
    usable: bool = False
    heard: float = -math.inf
    hosted: dict[tuple[str, int], Hosted] = field(default_factory=dict[tuple[str, int], Hosted])
    foreign: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    work: dict[str, Work] = field(default_factory=dict[str, Work])
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """HOST:PORT."""
        return self.channel.url

    def places(self, model: str | None = None) -> Iterator[Place]:
        """Where it takes work, for one model or for any."""
        for (name, number), hosted in self.hosted.items():
            if self.usable and not hosted.status.draining and model in (None, name):
                others = max(0.0, hosted.status.others_s - (time.monotonic() - hosted.seen))
                yield Place(
                    self.url,
                    name,
                    number,
                    hosted.entry.version,
                    others + sum(work.left() for work in self.work.values()),
                    len(self.work),
                    hosted.status.capacity,
                )

    def break_off(self, reason: str) -> None:
        """Its connection broke: it gets no work until it answers again."""
        if self.usable:
            _log.warning("Triton at %s is gone: %s", self.url, reason)
        self.usable = False

    async def look(self, client: str) -> None:
        """Ask what it serves and how it is.

        Raises:
            ServerLost, TimeoutError: it does not answer.
        """
        async with asyncio.timeout(ANSWER_S):
            ready = [key for key in await self.channel.versions() if key not in self.foreign]
        described = await asyncio.gather(*(self._describe(name, number, client) for name, number in ready))
        found = {key: hosted for key, hosted in zip(ready, described, strict=True) if hosted is not None}
        for name, number in found.keys() - self.hosted.keys():
            version = found[name, number].entry.version
            _log.info("Triton at %s serves %s version %d (%s)", self.url, name, number, version)
        self.hosted = found
        self.usable, self.heard = True, time.monotonic()
        self.lost.clear()

    async def _describe(self, name: str, number: int, client: str) -> Hosted | None:
        """One model, as it describes itself now, or did before where it is too busy; None where it cannot be used."""
        key = (name, number)
        try:
            async with asyncio.timeout(ANSWER_S):
                if key not in self.hosted and not await self.channel.is_ours(name, number):
                    self.foreign.add(key)
                    return None
                status = await self.channel.ask(name, number, pack_control("status", client))
                return Hosted(entry_of(status.entry, f"{self.url}/{name}"), status, time.monotonic())
        except TimeoutError:
            return self.hosted.get(key)
        except (ServerLost, CheckpointError) as error:  # unloaded since, or of another version of ours
            _log.warning("%s of %s cannot be used now: %s", name, self.url, error)
            return None


class Pool:
    """All servers.

    Args:
        urls: their gRPC services, HOST:PORT each.
        client: names this gateway to them.
    """

    def __init__(self, urls: Sequence[str], client: str) -> None:
        self._urls = tuple(dict.fromkeys(urls))
        self._client = client
        self._watching: list[asyncio.Task[None]] = []
        self.servers: dict[str, Server] = {}
        self.changed = asyncio.Condition()

    async def start(self) -> None:
        """Connect, and begin to watch."""
        self.servers = {url: Server(Channel(url)) for url in self._urls}
        self._watching = [asyncio.create_task(self._watch(server)) for server in self.servers.values()]

    async def stop(self) -> None:
        """Close every connection; streams on them end."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for server in self.servers.values():
            server.usable = False
            server.lost.set()
            await server.channel.close()
        self._watching = []

    def places(self, model: str | None = None) -> list[Place]:
        """Where work is taken now."""
        return [place for server in self.servers.values() for place in server.places(model)]

    def hosted(self, model: str) -> Hosted | None:
        """A version of a model, the newest of any server; None where none serves it."""
        found = {key: one for server in self.servers.values() for key, one in server.hosted.items() if key[0] == model}
        return found[max(found)] if found else None

    def entries(self) -> list[ModelEntry]:
        """The checkpoints served, each name once, the newest of its versions."""
        names = {name for server in self.servers.values() for name, _ in server.hosted}
        hosted = [self.hosted(name) for name in sorted(names)]
        return [one.entry for one in hosted if one is not None]

    async def _watch(self, server: Server) -> None:
        while True:
            try:
                await server.look(self._client)
            except (ServerLost, TimeoutError) as error:
                if isinstance(error, ServerLost) or time.monotonic() - server.heard > LOST_S:
                    server.break_off(str(error) or "it does not answer")
                    server.lost.set()
            except Exception:  # noqa: BLE001 - the boundary: without this loop the server would never be seen again
                _log.exception("looking at Triton at %s failed; trying again", server.url)
            async with self.changed:
                self.changed.notify_all()
            await asyncio.sleep(LOOK_S)

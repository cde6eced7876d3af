"""The pool of Triton servers behind a gateway: health, hosted models, and least-work-left load balancing. No torch.

Each server is polled for the models it hosts and the work it has. A job goes to the server that should be done first.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from model.catalog import ModelEntry
from model.errors import CheckpointError
from serving.triton.channel import Channel, ServerLost
from serving.triton.wire import Status, entry_from_fields, pack_control


@dataclass(frozen=True, slots=True)
class Replica:
    """A version of a model on a server that takes work.

    Args:
        url: the server's.
        name, number: the model, and the version's folder in the repository.
        version: of the checkpoint, as manifests name it.
        left_s: seconds of work the server still has, everybody's.
        in_flight, capacity: requests it has of us, and takes at once.
    """

    url: str
    name: str
    number: int
    version: str
    left_s: float
    in_flight: int
    capacity: int


def choose_replica(replicas: Iterable[Replica], pinned: str | None = None) -> Replica | None:
    """The place for a new job; None where there is none.

    A job that goes on from a stored state is `pinned` to the checkpoint's version that made it. Any other goes to the
    newest version of its server. Of the servers with room the one with the least work left comes first, then the one
    with the fewest requests; only where none has room, one of the full.
    """
    fitting = [replica for replica in replicas if pinned in (None, replica.version)]
    newest = {
        url: max(replica.number for replica in fitting if replica.url == url) for url in {one.url for one in fitting}
    }
    able = [replica for replica in fitting if replica.number == newest[replica.url]]
    return min(
        able,
        key=lambda replica: (replica.in_flight >= replica.capacity, replica.left_s, replica.in_flight, replica.url),
        default=None,
    )


_log = logging.getLogger(__name__)
POLL_INTERVAL_S: Final = 1.0
"""Seconds between two looks at a server."""
POLL_TIMEOUT_S: Final = 10.0
"""Seconds a server has to answer a look."""
LOST_S: Final = 20.0
"""A server silent for so long is given up, and its jobs go elsewhere; one whose connection breaks, at once."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """A version of a model on a server, as it last described itself."""

    entry: ModelEntry
    status: Status
    observed_at: float


@dataclass(slots=True, eq=False)
class RemoteJob:
    """A job of ours on a server; `left_s` as of `updated_at`."""

    left_s: float
    updated_at: float = field(default_factory=time.monotonic)

    def update(self, left_s: float) -> None:
        """So much is left from now on."""
        self.left_s, self.updated_at = left_s, time.monotonic()

    def left(self) -> float:
        """Seconds left by now."""
        return max(0.0, self.left_s - (time.monotonic() - self.updated_at))


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
    answered_at: float = -math.inf
    hosted: dict[tuple[str, int], Hosted] = field(default_factory=dict[tuple[str, int], Hosted])
    foreign: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    jobs: dict[str, RemoteJob] = field(default_factory=dict[str, RemoteJob])
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """HOST:PORT."""
        return self.channel.url

    def replicas(self, model: str | None = None) -> Iterator[Replica]:
        """Where it takes work, for one model or for any."""
        for (name, number), hosted in self.hosted.items():
            if self.usable and not hosted.status.draining and model in (None, name):
                others = max(0.0, hosted.status.others_s - (time.monotonic() - hosted.observed_at))
                yield Replica(
                    self.url,
                    name,
                    number,
                    hosted.entry.version,
                    others + sum(job.left() for job in self.jobs.values()),
                    len(self.jobs),
                    hosted.status.capacity,
                )

    def break_off(self, reason: str) -> None:
        """Its connection broke: it gets no work until it answers again."""
        if self.usable:
            _log.warning("Triton at %s is gone: %s", self.url, reason)
        self.usable = False

    async def poll(self, client: str) -> None:
        """Ask what it serves and how it is.

        Raises:
            ServerLost, TimeoutError: it does not answer.
        """
        async with asyncio.timeout(POLL_TIMEOUT_S):
            ready = [key for key in await self.channel.versions() if key not in self.foreign]
        described = await asyncio.gather(*(self._describe(name, number, client) for name, number in ready))
        hosted_now = {key: hosted for key, hosted in zip(ready, described, strict=True) if hosted is not None}
        for name, number in hosted_now.keys() - self.hosted.keys():
            version = hosted_now[name, number].entry.version
            _log.info("Triton at %s serves %s version %d (%s)", self.url, name, number, version)
        self.hosted = hosted_now
        self.usable, self.answered_at = True, time.monotonic()
        self.lost.clear()

    async def _describe(self, name: str, number: int, client: str) -> Hosted | None:
        """One model, as it describes itself now, or did before where it is too busy; None where it cannot be used."""
        key = (name, number)
        try:
            async with asyncio.timeout(POLL_TIMEOUT_S):
                if key not in self.hosted and not await self.channel.is_ours(name, number):
                    self.foreign.add(key)
                    return None
                status = await self.channel.ask(name, number, pack_control("status", client))
                return Hosted(entry_from_fields(status.entry, f"{self.url}/{name}"), status, time.monotonic())
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

    def replicas(self, model: str | None = None) -> list[Replica]:
        """Where work is taken now."""
        return [replica for server in self.servers.values() for replica in server.replicas(model)]

    def hosted(self, model: str) -> Hosted | None:
        """A version of a model, the newest of any server; None where none serves it."""
        versions = {
            key: one for server in self.servers.values() for key, one in server.hosted.items() if key[0] == model
        }
        return versions[max(versions)] if versions else None

    def entries(self) -> list[ModelEntry]:
        """The checkpoints served, each name once, the newest of its versions."""
        names = {name for server in self.servers.values() for name, _ in server.hosted}
        hosted = [self.hosted(name) for name in sorted(names)]
        return [one.entry for one in hosted if one is not None]

    async def _watch(self, server: Server) -> None:
        while True:
            try:
                await server.poll(self._client)
            except (ServerLost, TimeoutError) as error:
                if isinstance(error, ServerLost) or time.monotonic() - server.answered_at > LOST_S:
                    server.break_off(str(error) or "it does not answer")
                    server.lost.set()
            except Exception:  # noqa: BLE001 - the boundary: without this loop the server would never be seen again
                _log.exception("looking at Triton at %s failed; trying again", server.url)
            async with self.changed:
                self.changed.notify_all()
            await asyncio.sleep(POLL_INTERVAL_S)

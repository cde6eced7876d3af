"""A proxy that loses answers: it stands between a client and a server, and hangs up in the middle of what it is told.

Each connection is cut by the next number of its list: so many bytes of the server's answers are passed on, then the
connection ends. Connections beyond the list are left whole. What clients sent is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PIECE = 512


@dataclass
class Proxy:
    """What has gone through, a connection each."""

    cuts: list[int]
    address: str = ""
    sent: list[bytearray] = field(default_factory=list)

    def header(self, name: str) -> list[str | None]:
        """The value that each connection's first request has for a header, in the order they were opened."""
        return [self._header(bytes(sent), name.lower()) for sent in self.sent]

    @staticmethod
    def _header(sent: bytes, name: str) -> str | None:
        head = sent.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        fields = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head)}
        return fields.get(name)


@asynccontextmanager
async def cutting(upstream: str, *cuts: int) -> AsyncIterator[Proxy]:
    """A proxy in front of the server at `upstream`, a URL."""
    proxy = Proxy(list(cuts))
    server = await asyncio.start_server(lambda reader, writer: _serve(proxy, upstream, reader, writer), "127.0.0.1", 0)
    proxy.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()


async def _serve(proxy: Proxy, upstream: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    number = len(proxy.sent)
    proxy.sent.append(bytearray())
    left = proxy.cuts[number] if number < len(proxy.cuts) else None
    target = urlsplit(upstream)
    answers, requests = await asyncio.open_connection(target.hostname, target.port)
    asking = asyncio.create_task(_ask(proxy.sent[number], reader, requests))
    try:
        while piece := await answers.read(_PIECE):  # the server has answered before anything is lost
            if left is not None:
                piece, left = piece[:left], left - len(piece)
            writer.write(piece)
            await writer.drain()
            if left is not None and left <= 0:
                break
    except ConnectionError:
        pass  # the client has gone; so does the server's side, below
    finally:
        asking.cancel()
        writer.close()
        requests.close()


async def _ask(sent: bytearray, reader: asyncio.StreamReader, requests: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        sent += piece
        requests.write(piece)
        await requests.drain()
    requests.close()

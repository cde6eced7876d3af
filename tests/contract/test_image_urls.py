"""Pictures by URL, against a server of the test's own: what leads anywhere but to a public address is refused."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from serving.gateway.images import Fetcher, FetchLimits, UrlChoice
from serving.gateway.services import Integrations
from serving.net import Address, AddressPolicy, resolve_host
from serving.observe.traces import NoTraces
from tests.contract.support import Running, error_of, picture, running

LOOPBACK = (ipaddress.ip_network("127.0.0.1/32"),)
PUBLIC = ipaddress.ip_address("93.184.215.14")


class Site:
    """A web server that counts who comes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except ConnectionError:
            return
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).decode().split(" ")[1]
        self.asked.append(path)
        head, body = "200 OK", picture()
        if path.startswith("/to?"):
            head, body = f"302 Found\r\nLocation: {path[4:]}", b""
        elif path == "/missing":
            head = "404 Not Found"
        elif path == "/big":
            body = b"x" * 300_000
        elif path == "/slow":
            await asyncio.sleep(5)
        writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    one = Site()
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    async with server:
        yield one


def integrations(fetcher: Fetcher) -> Integrations:
    return Integrations(fetcher, None, None, NoTraces())


def fetcher(choice: UrlChoice = "http", *, allowed: bool = False) -> Fetcher:
    policy = AddressPolicy(frozenset({"http", "https"}), LOOPBACK) if allowed else None
    return Fetcher(choice, FetchLimits(max_bytes=100_000, seconds=2), policy=policy)


async def ask(app: Running, url: str) -> httpx2.Response:
    return await app.client.post("/generate/image-to-video", json={"image": {"url": url}})


async def test_urls_are_off_by_default(tmp_path: Path) -> None:
    async with site() as web, running(tmp_path) as app:
        answer = await ask(app, f"http://127.0.0.1:{web.port}/still.png")
        assert (answer.status_code, error_of(answer).code) == (422, "url_not_allowed")
        assert web.asked == []


async def test_a_picture_is_fetched_where_the_policy_allows_it(tmp_path: Path) -> None:
    async with site() as web, running(tmp_path, integrations=integrations(fetcher(allowed=True))) as app:
        base = f"http://127.0.0.1:{web.port}"
        answer = await ask(app, f"{base}/still.png")
        assert answer.status_code == 202, answer.text
        job = await app.until(answer.json()["id"], "completed")
        assert job.output is not None
        assert (await ask(app, f"{base}/to?{base}/still.png")).status_code == 202, "redirects are followed"
        for path, code in (
            ("/missing", "url_unreachable"),
            ("/slow", "url_unreachable"),
            ("/big", "image_too_large"),
            (f"/to?{base}/to?{base}/to?{base}/to?{base}/still.png", "url_unreachable"),
        ):
            refused = await ask(app, base + path)
            assert (refused.status_code in (413, 422), error_of(refused).code) == (True, code), path
        files = (await app.stored())[1]
        assert not [name for name in files if name.endswith(".part")]


SPELLINGS = [
    "http://127.0.0.1:{port}/x",
    "http://localhost:{port}/x",
    "http://2130706433:{port}/x",
    "http://0x7f000001:{port}/x",
    "http://0177.0.0.1:{port}/x",
    "http://127.1:{port}/x",
    "http://[::1]:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x",
    "http://[::ffff:7f00:1]:{port}/x",
    "http://[64:ff9b::7f00:1]:{port}/x",
    "http://[fe80::1]:{port}/x",
    "http://[fd00::1]:{port}/x",
    "http://0.0.0.0:{port}/x",
    "http://10.0.0.1/x",
    "http://172.16.0.1/x",
    "http://192.168.0.1/x",
    "http://100.64.0.1/x",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://user:secret@127.0.0.1:{port}/x",
    "http://224.0.0.1/x",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/x",
    "ftp://127.0.0.1:{port}/x",
    "//127.0.0.1:{port}/x",
    "/etc/passwd",
]


async def test_every_spelling_of_a_private_address_is_refused_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site() as web, running(tmp_path, integrations=integrations(fetcher())) as app:
        for spelling in SPELLINGS:
            url = spelling.format(port=web.port)
            caplog.clear()
            with caplog.at_level(logging.INFO, logger="serving"):
                answer = await ask(app, url)
            assert answer.status_code == 422, (url, answer.text)
            error = error_of(answer)
            assert error.param == "image.url", url
            # Some resolvers cannot read the odd spellings at all; then there is nothing to refuse.
            assert error.code in ("address_refused", "url_unreachable"), url
            assert [record for record in caplog.records if record.name.startswith("serving")], f"{url}: not logged"
            assert "secret" not in caplog.text
        for url in ("http://127.0.0.1:1/x", "http://169.254.169.254/", "file:///etc/passwd", "http://[::1]/"):
            assert error_of(await ask(app, url)).code == "address_refused"
        assert web.asked == []
        assert await app.stored() == (0, [])


async def test_https_only_refuses_http(tmp_path: Path) -> None:
    async with running(tmp_path, integrations=integrations(fetcher("https"))) as app:
        assert error_of(await ask(app, "http://example.com/x.png")).code == "address_refused"


async def named(host: str, port: int) -> Sequence[Address]:
    """The test's own names; all else by the system."""
    if host == "public.example":
        return [ipaddress.ip_address("127.0.0.1")]
    return await resolve_host(host, port)


async def test_a_redirect_to_loopback_is_refused_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first hop is allowed as if it were public; what it points to is a request of its own."""
    async with site() as inner, site() as web:
        one = AddressPolicy(frozenset({"http"}))
        hop = Hop(one, web.port)
        getter = Fetcher("http", FetchLimits(seconds=2), policy=hop, resolve=named)
        async with running(tmp_path, integrations=integrations(getter)) as app:
            for target in (
                f"http://127.0.0.1:{inner.port}/x",
                f"http://localhost:{inner.port}/x",
                f"http://2130706433:{inner.port}/x",
                f"http://[::1]:{inner.port}/x",
                "http://169.254.169.254/latest/meta-data/",
                "gopher://127.0.0.1/x",
                "file:///etc/passwd",
            ):
                caplog.clear()
                with caplog.at_level(logging.INFO, logger="serving"):
                    answer = await ask(app, f"http://public.example:{web.port}/to?{target}")
                assert answer.status_code == 422, target
                assert error_of(answer).code in ("address_refused", "url_unreachable")
                assert [record for record in caplog.records if record.name.startswith("serving")], (
                    f"{target}: not logged"
                )
            assert len(web.asked) == 7
            assert inner.asked == []


class Hop(AddressPolicy):
    """The real policy, but for the first hop: the one connection that the test's public site is reached by."""

    def __init__(self, real: AddressPolicy, port: int) -> None:
        object.__setattr__(self, "schemes", real.schemes)
        object.__setattr__(self, "allowed", real.allowed)
        object.__setattr__(self, "_port", port)
        object.__setattr__(self, "_here", False)

    def check_url(self, url: httpx2.URL) -> None:
        super().check_url(url)
        object.__setattr__(self, "_here", url.host == "public.example" and url.port == self._port)  # type: ignore[attr-defined]

    def permits(self, address: Address) -> bool:
        return bool(self._here) or super().permits(address)  # type: ignore[attr-defined]


async def test_a_name_that_changes_its_mind_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """DNS rebinding: public when it is checked, loopback when it is connected to; it is resolved once."""
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[Address]:
        asked.append(host)
        return [PUBLIC] if len(asked) == 1 else [ipaddress.ip_address("127.0.0.1")]

    async with site() as web:
        getter = Fetcher("http", FetchLimits(seconds=1), resolve=rebinding)
        async with running(tmp_path, integrations=integrations(getter)) as app:
            for _ in range(2):
                caplog.clear()
                with caplog.at_level(logging.INFO, logger="serving"):
                    answer = await ask(app, f"http://rebind.example:{web.port}/x")
                assert [record for record in caplog.records if record.name.startswith("serving")], "not logged"
                assert (answer.status_code, error_of(answer).param) == (422, "image.url")
            assert len(asked) == 2, "once a request"
            assert web.asked == []


async def test_a_name_with_one_private_address_among_public_ones_is_refused(tmp_path: Path) -> None:
    async def mixed(host: str, port: int) -> Sequence[Address]:
        return [PUBLIC, ipaddress.ip_address("10.1.2.3")]

    fetcher = Fetcher("http", FetchLimits(seconds=1), resolve=mixed)
    async with running(tmp_path, integrations=integrations(fetcher)) as app:
        answer = await ask(app, "http://mixed.example/x")
        assert error_of(answer).code == "address_refused"
        assert "10.1.2.3" not in answer.text, "what a name means inside is not the caller's to know"

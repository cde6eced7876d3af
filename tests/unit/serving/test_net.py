"""The address policy and its transport: a server of the test's own must never be reached without leave."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.net import Address, AddressPolicy, AddressRefused, PublicOnly, networks, resolve_host

BOTH = frozenset({"http", "https"})
LOOPBACK = AddressPolicy(BOTH, networks(["127.0.0.0/8"]))


@dataclass
class Web:
    """A server on loopback that redirects /to?URL and says hello elsewhere; `seen` holds each request's first lines."""

    port: int = 0
    seen: list[str] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.seen.append(head)
        path = head.split()[1]
        if path.startswith("/to?"):
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {path[4:]}\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    web = Web()
    server = await asyncio.start_server(web.answer, "127.0.0.1", 0)
    web.port = server.sockets[0].getsockname()[1]
    async with server:
        yield web


async def get(url: str, policy: AddressPolicy, resolve: object = resolve_host) -> httpx2.Response:
    transport = PublicOnly(policy, resolve=resolve)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, follow_redirects=True) as client:
        return await client.get(url)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "[::]",
    ],
)
async def test_no_spelling_of_loopback_is_reached(web: Web, host: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises((AddressRefused, httpx2.ConnectError, httpx2.InvalidURL)):
        await get(f"http://{host}:{web.port}/", AddressPolicy(BOTH))
    assert web.seen == []
    # A machine without IPv6 cannot even resolve some, and httpx takes no octal.
    assert "refused to connect" in caplog.text or "[" in host or host.startswith("0177")


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "::7f00:1",
        "::8.8.8.8",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "2002:7f00:1::",
        "fd00:ec2::254",
        "2001:0:7f00:1::",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not AddressPolicy().permits(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_addresses_that_are(address: str) -> None:
    assert AddressPolicy().permits(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_in_ipv6_never_helps(address: ipaddress.IPv4Address) -> None:
    policy = AddressPolicy()
    if policy.permits(address):
        return
    value = int(address)
    assert not policy.permits(ipaddress.IPv6Address((0xFFFF << 32) | value))
    assert not policy.permits(ipaddress.IPv6Address((0x64FF9B << 96) | value))
    assert not policy.permits(ipaddress.IPv6Address((0x2002 << 112) | (value << 80)))


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "gopher://example.org/", "ftp://example.org/", "http://example.org/"]
)
async def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises((AddressRefused, httpx2.UnsupportedProtocol)):
        await get(url, AddressPolicy())


async def test_credentials_in_a_url_are_refused() -> None:
    with pytest.raises(AddressRefused, match="password"):
        await get("https://me:secret@example.org/", AddressPolicy())


async def test_a_redirect_meets_the_same_checks(web: Web) -> None:
    narrow = AddressPolicy(BOTH, networks(["127.0.0.1/32"]))
    for target in ("http://127.0.0.2/", "http://169.254.169.254/latest", "http://[::1]/", "http://10.0.0.1/"):
        with pytest.raises((AddressRefused, httpx2.ConnectError)):
            await get(f"http://127.0.0.1:{web.port}/to?{target}", narrow)
    assert len(web.seen) == 4


async def test_a_name_that_answers_differently_the_second_time_gains_nothing(web: Web) -> None:
    asked = []

    async def rebinding(host: str, port: int) -> Sequence[Address]:
        asked.append(host)
        return [ipaddress.ip_address("127.0.0.1" if len(asked) == 1 else "10.0.0.1")]

    answer = await get(f"http://rebind.example:{web.port}/x", LOOPBACK, rebinding)
    assert (answer.text, asked) == ("hello", ["rebind.example"])
    assert f"Host: rebind.example:{web.port}\r\n" in web.seen[0]
    assert str(answer.url) == f"http://rebind.example:{web.port}/x"


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    async def mixed(host: str, port: int) -> Sequence[Address]:
        return [ipaddress.ip_address(text) for text in ("1.1.1.1", "10.0.0.1")]

    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1"):
        await get("https://mixed.example/", AddressPolicy(), mixed)


async def test_tls_is_for_the_name_not_the_address() -> None:
    sent: list[httpx2.Request] = []

    async def record(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(200)

    async def public(host: str, port: int) -> Sequence[Address]:
        return [ipaddress.ip_address("1.1.1.1")]

    transport = PublicOnly(AddressPolicy(), resolve=public, inner=httpx2.MockTransport(record))
    async with httpx2.AsyncClient(transport=transport) as client:
        await client.post("https://example.org:8443/hook?a=1", content=b"body")
    assert str(sent[0].url) == "https://1.1.1.1:8443/hook?a=1"
    assert (sent[0].headers["host"], sent[0].extensions["sni_hostname"]) == ("example.org:8443", "example.org")
    assert await sent[0].aread() == b"body"

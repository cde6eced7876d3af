"""SSRF protection: requests to URLs of callers go to public addresses only, and to the address that was checked.

A name is resolved once, each of its addresses is checked, and the connection goes to one of those very addresses (the
name still goes into Host and TLS), so a name that answers differently the second time gains nothing (DNS rebinding). A
redirect is a request of its own and meets the same checks.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import httpx2

from model.errors import InvalidRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

_log = logging.getLogger(__name__)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_NEVER_PUBLIC: Final = (ipaddress.IPv6Network("::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
"""IPv4-compatible addresses (RFC 4291) and the NAT64 prefix for local use (RFC 8215); some Pythons call them global."""
_PORTS: Final = {"http": 80, "https": 443}


class AddressRefused(InvalidRequest):
    """A URL that this server must not connect to."""

    code = "address_refused"


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Where requests may go.

    Args:
        schemes: of `http` and `https`.
        allowed: networks that are allowed although they are not public, by the operator's choice.
    """

    schemes: frozenset[str] = frozenset({"https"})
    allowed: tuple[Network, ...] = ()

    def permits(self, address: Address) -> bool:
        """Whether a connection may go to this address."""
        if any(address.version == network.version and address in network for network in self.allowed):
            return True
        return not any(address in network for network in _NEVER_PUBLIC if network.version == address.version) and all(
            inner.is_global and not inner.is_multicast for inner in _meanings(address)
        )

    def check_url(self, url: httpx2.URL) -> None:
        """Raise AddressRefused for what needs no resolving: the scheme, credentials, a missing host."""
        if url.scheme not in self.schemes:
            raise AddressRefused(f"the URL must begin with {' or '.join(sorted(self.schemes))}://, not {url.scheme}://")
        if url.userinfo:
            raise AddressRefused("the URL must not carry a user name or password")
        if not url.host:
            raise AddressRefused("the URL names no host")


def _meanings(address: Address) -> list[Address]:
    """The address, and the IPv4 address that it carries within, if it does (mapped, 6to4, Teredo, NAT64)."""
    addresses: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return [address.ipv4_mapped]
        addresses += [inner for inner in (address.sixtofour, *(address.teredo or ())) if inner is not None]
        if address in _NAT64:
            addresses.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return addresses


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks from their usual spelling, such as `10.0.0.0/8`.

    Raises:
        InvalidRequest: one cannot be read.
    """
    try:
        return tuple(ipaddress.ip_network(text.strip()) for text in texts)
    except ValueError as error:
        raise InvalidRequest(f"not a network: {error}") from error


async def resolve_host(host: str, port: int) -> list[Address]:
    """Every address of a host, by the system's resolver (which also reads `127.1`, `0x7f000001` and the like)."""
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in addresses]


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """The system's certificates, read once a process: it takes a tenth of a second."""
    return httpx2.create_ssl_context(trust_env=False)


class PublicOnly(httpx2.AsyncBaseTransport):
    """An httpx2 transport that keeps to a policy; use it as `httpx2.AsyncClient(transport=PublicOnly(policy))`.

    Connections are not reused: the pool distinguishes them by address, and two names may share one.

    Args:
        policy: where requests may go.
        resolve: a host's addresses; tests bring their own.
        inner: what connects.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        resolve: Resolve = resolve_host,
        inner: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._policy = policy
        self._resolve = resolve
        self._inner = inner or httpx2.AsyncHTTPTransport(
            verify=_tls_context(), trust_env=False, limits=httpx2.Limits(max_keepalive_connections=0)
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Check one request (redirects come here again), and send it to the address that was checked.

        Raises:
            AddressRefused: the policy does not permit it; the log names the URL and the address.
            httpx2.ConnectError: the host has no address.
        """
        try:
            self._policy.check_url(request.url)
            address = await self._checked_address(request)
        except AddressRefused as error:
            _log.warning("refused to connect to %s: %s", _plain(request.url), error.message)
            raise
        extensions = dict(request.extensions)
        if request.url.scheme == "https":
            extensions["sni_hostname"] = request.url.raw_host.decode("ascii")
        checked = httpx2.Request(
            method=request.method,
            url=request.url.copy_with(host=str(address)),
            headers=request.headers,  # Host among them, as the caller wrote the URL
            stream=request.stream,
            extensions=extensions,
        )
        return await self._inner.handle_async_request(checked)

    async def aclose(self) -> None:
        """Close what connects."""
        await self._inner.aclose()

    async def _checked_address(self, request: httpx2.Request) -> Address:
        host = request.url.host
        port = request.url.port or _PORTS[request.url.scheme]
        try:
            addresses = await self._resolve(host, port)
        except OSError as error:
            raise httpx2.ConnectError(f"{host} cannot be resolved: {error}", request=request) from error
        if not addresses:
            raise httpx2.ConnectError(f"{host} has no address", request=request)
        for address in addresses:
            if not self._policy.permits(address):
                raise AddressRefused(f"{host} leads to {address}, which is not a public address")
        return addresses[0]


def _plain(url: httpx2.URL) -> str:
    """The URL without what may be secret in it."""
    return f"{url.scheme}://{url.host}{'' if url.port is None else f':{url.port}'}{url.path}"

"""Pictures by URL: off unless the operator says so, and then only from public addresses, in limits of size and time."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final, Literal

import httpx

from model.errors import ImageTooLarge, InvalidRequest
from serving.net import AddressPolicy, AddressRefused, PublicOnly, Resolve, resolve_host

UrlChoice = Literal["off", "https", "http"]
"""No URLs at all; https only; or plain http too."""

_log = logging.getLogger(__name__)
_PARAM: Final = "image.url"
_MAX_REDIRECTS: Final = 3


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What a download may take.

    Args:
        max_bytes: of the body, after any decompression.
        seconds: for everything, redirects included.
    """

    max_bytes: int = 20_000_000
    seconds: float = 20.0


class Fetcher:
    """Fetches what callers name.

    Args:
        choice: which URLs are allowed.
        limits: on each download.
        policy: where to; public addresses with the allowed schemes if left out. Tests bring their own.
        resolve: a host's addresses; tests bring their own.
    """

    def __init__(
        self,
        choice: UrlChoice,
        limits: FetchLimits,
        *,
        policy: AddressPolicy | None = None,
        resolve: Resolve = resolve_host,
    ) -> None:
        schemes = {"off": (), "https": ("https",), "http": ("http", "https")}[choice]
        self._choice = choice
        self._limits = limits
        self._policy = policy or AddressPolicy(frozenset(schemes))
        self._resolve = resolve

    async def fetch(self, url: str) -> bytes:
        """The bytes at a URL, whatever they claim to be: the decoder judges them.

        Raises:
            InvalidRequest: URLs are off, the address is refused, or nothing came in time; `param` says image.url.
            ImageTooLarge: more than the limit.
        """
        if self._choice == "off":
            raise InvalidRequest(
                "this server fetches no URLs; send the picture itself", code="url_not_allowed", param=_PARAM
            )
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._download(url)
        except AddressRefused as error:
            # The address itself stays in our log: what a name means inside of this network is not the caller's to know.
            told = "it does not lead to a public address, or not in an allowed way"
            raise InvalidRequest(f"{url[:200]} is not fetched: {told}", code=error.code, param=_PARAM) from error
        except TimeoutError as error:
            raise self._unreachable(f"it took longer than {self._limits.seconds:g} s") from error
        except httpx.TooManyRedirects as error:
            raise self._unreachable(f"more than {_MAX_REDIRECTS} redirects") from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            _log.warning("a picture could not be fetched: %s", type(error).__name__)
            raise self._unreachable("there is no whole answer from it") from error

    async def _download(self, url: str) -> bytes:
        self._check(url)
        transport = PublicOnly(self._policy, resolve=self._resolve)
        client = httpx.AsyncClient(
            transport=transport, follow_redirects=True, max_redirects=_MAX_REDIRECTS, timeout=self._limits.seconds
        )
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "stillmotion"}
        async with client, client.stream("GET", url, headers=headers) as answer:
            if answer.status_code != 200:
                raise self._unreachable(f"it answers {answer.status_code}")
            body = bytearray()
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > self._limits.max_bytes:
                    raise ImageTooLarge(
                        f"the picture at the URL has more than {self._limits.max_bytes} bytes", param=_PARAM
                    )
            return bytes(body)

    def _check(self, url: str) -> None:
        """Refuse what can be told without resolving; httpx raises errors of its own for some of it."""
        try:
            self._policy.check_url(httpx.URL(url))
        except httpx.InvalidURL as error:
            _log.warning("refused to fetch what is no URL")
            raise AddressRefused("no URL") from error
        except AddressRefused as error:
            _log.warning("refused to fetch a picture: %s", error.message)
            raise

    def _unreachable(self, why: str) -> InvalidRequest:
        return InvalidRequest(
            f"the picture cannot be fetched: {why}; send it in image.data", code="url_unreachable", param=_PARAM
        )

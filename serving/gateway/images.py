"""Input pictures: fetched by URL where allowed, fitted to the clip, and stored as an uncompressed PNG.

Fitting at submission keeps what is stored, and read again by the engine, as small as the clip; fitting a fitted
picture again changes nothing, so the engine makes the same video of it. Compressing the PNG took ten times as long as
all the rest of a submission, for a third of the bytes. URLs are off unless the operator allows them, and then only
public addresses are fetched, within limits of size and time.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal

import httpx2
import numpy as np
from PIL import Image

from model.errors import ImageTooLarge, InvalidRequest, StorageFull
from model.media.image import as_rgb, converted_from, fit_picture
from model.params import Params
from serving.net import AddressPolicy, AddressRefused, PublicOnly, Resolve, resolve_host

UrlChoice = Literal["off", "https", "http"]
"""No URLs at all; https only; or plain http too."""

_log = logging.getLogger(__name__)
_PARAM: Final = "image.url"
_MAX_REDIRECTS: Final = 3


SPOOLED_BYTES: Final = 1 << 20
"""Bytes of a picture's file that stay in memory; a larger one lies in a temporary file until it is decoded."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture that was uploaded or fetched: its bytes are in memory only while they are read.

    Args:
        file: seekable; whoever has the request closes it.
        size: in bytes.
    """

    file: BinaryIO
    size: int

    def read(self) -> bytes:
        """All of its bytes."""
        self.file.seek(0)
        return self.file.read()

    def sha256(self) -> bytes:
        """The digest of its bytes."""
        self.file.seek(0)
        digest = hashlib.sha256()
        while piece := self.file.read(SPOOLED_BYTES):
            digest.update(piece)
        return digest.digest()


UPLOAD_ID: Final = re.compile(r"upload_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class UploadRef:
    """A picture that was uploaded before, by its id (serving.jobs.uploads)."""

    id: str

    @property
    def digest(self) -> bytes:
        """The SHA-256 of its bytes, which the id says."""
        match = UPLOAD_ID.fullmatch(self.id)
        return bytes.fromhex(match[1]) if match else b""


PictureSource = PictureFile | UploadRef | bytes | str
"""A picture of a request: its file, an upload, its bytes, or a URL."""


@contextmanager
def room_for_uploads() -> Iterator[None]:
    """Temporary files are written inside; raises StorageFull where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFull("the disk for temporary files (TMPDIR) is full; send the request again in a while") from error


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What a download may take.

    Args:
        max_bytes: of the body, after any decompression.
        seconds: for everything, redirects included.
    """

    max_bytes: int = 100_000_000
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

    async def fetch(self, url: str) -> PictureFile:
        """The bytes at a URL, whatever they claim to be: the decoder judges them. The caller closes the file.

        Raises:
            InvalidRequest: URLs are off, the address is refused, or nothing came in time; `param` says image.url.
            ImageTooLarge: more than the limit.
            StorageFull: no room for it on the disk.
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
            reason = "it does not lead to a public address, or not in an allowed way"
            raise InvalidRequest(f"{url[:200]} is not fetched: {reason}", code=error.code, param=_PARAM) from error
        except TimeoutError as error:
            raise self._unreachable(f"it took longer than {self._limits.seconds:g} s") from error
        except httpx2.TooManyRedirects as error:
            raise self._unreachable(f"more than {_MAX_REDIRECTS} redirects") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            _log.warning("a picture could not be fetched: %s", type(error).__name__)
            raise self._unreachable("there is no whole answer from it") from error

    async def _download(self, url: str) -> PictureFile:
        self._check(url)
        transport = PublicOnly(self._policy, resolve=self._resolve)
        client = httpx2.AsyncClient(
            transport=transport, follow_redirects=True, max_redirects=_MAX_REDIRECTS, timeout=self._limits.seconds
        )
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "stillmotion"}
        async with client, client.stream("GET", url, headers=headers) as answer:
            if answer.status_code != 200:
                raise self._unreachable(f"it answers {answer.status_code}")
            with ExitStack() as unless_whole:
                file: BinaryIO = tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES)  # type: ignore[assignment]  # noqa: SIM115
                unless_whole.callback(file.close)
                await self._receive(answer, file)
                unless_whole.pop_all()  # the caller closes it
            return PictureFile(file, file.tell())

    async def _receive(self, answer: httpx2.Response, file: BinaryIO) -> None:
        with room_for_uploads():
            async for piece in answer.aiter_bytes():
                file.write(piece)
                if file.tell() > self._limits.max_bytes:
                    raise ImageTooLarge(
                        f"the picture at the URL has more than {self._limits.max_bytes} bytes", param=_PARAM
                    )

    def _check(self, url: str) -> None:
        """Refuse what needs no resolving to refuse; httpx2 raises errors of its own for some of it."""
        try:
            self._policy.check_url(httpx2.URL(url))
        except httpx2.InvalidURL as error:
            _log.warning("refused to fetch what is no URL")
            raise AddressRefused("no URL") from error
        except AddressRefused as error:
            _log.warning("refused to fetch a picture: %s", error.message)
            raise

    def _unreachable(self, why: str) -> InvalidRequest:
        return InvalidRequest(
            f"the picture cannot be fetched: {why}; send it in image.data", code="url_unreachable", param=_PARAM
        )


_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_BLOCK: Final = 2**16 - 1
"""Bytes of the longest stored block."""


def fitted_png(picture: Image.Image, params: Params) -> bytes:
    """The picture at the clip's size, as the sampler reads it, as PNG.

    Args:
        picture: upright RGB, of any size.
        params: of a task that takes pictures.
    """
    return plain_png(fit_picture(picture, *params.picture_fit), converted_from(picture))


def plain_png(picture: Image.Image, colour_space: str | None = None) -> bytes:
    """An RGB picture as a PNG of stored scan lines without a filter (PNG specification, third edition, 10.1).

    Its pieces are put together once, at the end: copies were most of what it cost.

    Args:
        colour_space: what the picture was converted from, for the manifest (as `model.media.image.to_png` writes it).
    """
    pixels = np.asarray(as_rgb(picture))
    height, width, _ = pixels.shape
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    lines[:, 0] = 0  # each line begins with its filter's number: none
    lines[:, 1:] = pixels.reshape(height, 3 * width)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    text = [] if colour_space is None else _chunk(b"tEXt", [b"converted_from\0" + colour_space.encode("ascii")])
    chunks = (_chunk(b"IHDR", [head]), text, _chunk(b"IDAT", _stored(lines)), _chunk(b"IEND", []))
    return b"".join([_SIGNATURE, *(piece for chunk in chunks for piece in chunk)])


def _stored(lines: np.ndarray) -> list[bytes | memoryview]:
    """The pieces of a zlib stream of stored blocks (RFC 1950, 2.2; RFC 1951, 3.2.4)."""
    body = lines.reshape(-1).data
    pieces: list[bytes | memoryview] = [b"\x78\x01"]
    for first in range(0, len(body), _BLOCK):
        part = body[first : first + _BLOCK]
        pieces += [struct.pack("<BHH", first + _BLOCK >= len(body), len(part), len(part) ^ 0xFFFF), part]
    return [*pieces, struct.pack(">I", zlib.adler32(body))]


def _chunk(name: bytes, pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The pieces of a chunk: its length, name, body and checksum."""
    check = zlib.crc32(name)
    for piece in pieces:
        check = zlib.crc32(piece, check)
    return [struct.pack(">I", sum(map(len, pieces))), name, *pieces, struct.pack(">I", check)]

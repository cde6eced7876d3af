"""Byte ranges and validators of RFC 9110: which part of a file an answer carries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_RANGE: Final = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to `stop`, exclusive."""

    start: int
    stop: int

    def content_range(self, total: int) -> str:
        """As the Content-Range header says it."""
        return f"bytes {self.start}-{self.stop - 1}/{total}"


class Unsatisfiable(Exception):
    """The range lies wholly outside of the file."""


def parse_range(header: str | None, total: int) -> Span | None:
    """The one range asked for, or None for the whole file.

    No range, several, or one that is not understood: the whole file (RFC 9110 section 14.2 lets a server ignore it).

    Raises:
        Unsatisfiable: nothing of the range exists.
    """
    match = None if header is None else _RANGE.match(header)
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        if int(last) == 0 or total == 0:
            raise Unsatisfiable
        return Span(max(0, total - int(last)), total)
    start = int(first)
    stop = min(int(last) + 1, total) if last else total
    if last and int(last) < start:
        return None
    if start >= total:
        raise Unsatisfiable
    return Span(start, stop)


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names `etag`, by weak comparison (RFC 9110 section 13.1.2)."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags

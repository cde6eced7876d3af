"""Server-sent events from bytes, as they arrive (WHATWG HTML, 9.2.6). Does no input or output of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One event of the stream."""

    event: str
    data: str
    id: str


class EventParser:
    """Takes the stream in pieces of any size; `retry_s` is the reconnection time the server asked for, if it did."""

    def __init__(self) -> None:
        self.retry_s: float | None = None
        self._rest = b""
        self._after_cr = False
        self._started = False
        self._event = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The events that this piece completes."""
        for line in self._lines(chunk):
            if line:
                self._field(line)
                continue
            if self._data:
                yield Message(self._event or "message", "\n".join(self._data), self._id)
            self._event, self._data = "", []

    def _lines(self, chunk: bytes) -> Iterator[str]:
        """Lines end with LF, CR or CRLF; a CR at the end of a piece ends the line, and an LF after it is skipped."""
        if self._after_cr and chunk:
            chunk, self._after_cr = chunk.removeprefix(b"\n"), False
        self._rest += chunk
        if not self._started:
            if len(self._rest) < 3:
                return
            self._rest, self._started = self._rest.removeprefix(b"\xef\xbb\xbf"), True
        *whole, self._rest = self._rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        for line in whole:
            yield line.decode("utf-8", errors="replace")

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_s = int(value) / 1000

"""Rows on their way to the workers: named, checked, told apart, and with what is wrong with them.

Reading a manifest is one pass in order, so that a row which repeats an earlier one is seen; what was seen lies in a
file, not in memory. Imports no torch and no Ray.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from model.errors import InvalidRequest, StillmotionError
from serving.batch.manifest import Manifest, Portion, RawRow
from serving.batch.rows import Reading, as_json, name_of, read_row


@dataclass(frozen=True, slots=True)
class Line:
    """A row as it travels to a worker.

    Args:
        row: its number, from 1; 0 where rows have none.
        id: what its files are called; of a faulty row that names none, a name made from what it says.
        strict: read as a JSON body.
        text: the row as JSON.
        code, message, column: what is wrong with it; an empty code if nothing is known to be.
    """

    row: int
    id: str
    strict: bool
    text: str
    code: str = ""
    message: str = ""
    column: str = ""

    @property
    def fault(self) -> InvalidRequest | None:
        """What is wrong with it."""
        return InvalidRequest(self.message, code=self.code, param=self.column or None) if self.code else None


def read_lines(manifest: Manifest, portion: Portion, reading: Reading) -> Iterator[Line]:
    """Every row that is meant, in order, each checked but for its pictures."""
    with Seen() as seen:
        for raw in manifest.rows(portion):
            yield _line(raw, manifest.strict, reading, seen)


def _line(raw: RawRow, strict: bool, reading: Reading, seen: Seen) -> Line:
    text = raw.text if raw.fault is not None else as_json(raw.values)
    row_id = name_of(raw.values.get("id")) or f"row-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    try:
        if raw.fault is not None:
            raise raw.fault
        ask = read_row(raw.values, reading, strict=strict)
        row_id = ask.id
        seen.check(ask.id, ask.content, raw.number)
    except StillmotionError as error:
        if error.code == Seen.CODE:  # the name belongs to the row before
            row_id = f"row-{hashlib.sha256(f'{raw.number} {text}'.encode()).hexdigest()[:16]}"
        return Line(raw.number, row_id, strict, text, error.code, _sayable(error.message), _sayable(error.param or ""))
    except Exception as error:  # noqa: BLE001 - the boundary: what nobody thought of is that row's fault, and the others go on
        told = f"the row cannot be read: {type(error).__name__}: {error}"
        return Line(raw.number, row_id, strict, text, "malformed_row", _sayable(told))
    return Line(raw.number, row_id, strict, text)


def _sayable(text: str) -> str:
    """Without half characters, which JSON can hold and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


class Seen:
    """Which rows came before, in a scratch file: of a million rows it holds no more in memory than of ten."""

    CODE = "duplicate_row"

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # a nameless file, gone even if this is killed
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, content TEXT, row INTEGER) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def check(self, row_id: str, content: str, row: int) -> None:
        """Note a row.

        Raises:
            InvalidRequest: one before has its name; the message says which.
        """
        added = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (row_id, content, row))
        if added.rowcount:
            return
        query = self._database.execute("SELECT content, row FROM seen WHERE id = ?", (row_id,))
        before, first = query.fetchone()
        if before == content:
            told = f"the row says the same as row {first}: leave it out, or give it a seed or an id of its own"
        else:
            told = f"id {row_id!r} was used in row {first} already"
        raise InvalidRequest(told, code=self.CODE, param="id")


class Names:
    """A large set of names in little memory: 8 bytes each. Of a million strangers, one in 10^13 is taken for one."""

    def __init__(self, names: Iterable[str]) -> None:
        self._sorted = np.fromiter((_digest(name) for name in names), dtype=np.uint64)
        self._sorted.sort()

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, name: str) -> bool:
        digest = np.uint64(_digest(name))
        at = int(np.searchsorted(self._sorted, digest))
        return at < len(self._sorted) and bool(self._sorted[at] == digest)


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def in_packets(lines: Iterable[Line], done: Names, most: int) -> Iterator[list[Line]]:
    """One row a packet, so that a lost worker costs least; rows that are complete come many to a packet."""
    complete: list[Line] = []
    for line in lines:
        if line.id not in done or line.code:
            yield [line]
            continue
        complete.append(line)
        if len(complete) == most:
            yield complete
            complete = []
    if complete:
        yield complete

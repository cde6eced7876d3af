"""What a run has heard of so far: results in a scratch file, given back in the manifest's order."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from serving.batch.result import Result, parse

_PAGE = 500


class Ledger:
    """Holds results by row, on disk; of a million rows no more is in memory than of a page."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # a nameless file, gone even if this is killed
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE results (row INTEGER PRIMARY KEY, record BLOB)")
        self._database.execute("BEGIN")
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, result: Result) -> None:
        """Note a row's result; one that is told again counts once."""
        added = self._database.execute("INSERT OR IGNORE INTO results VALUES (?, ?)", (result.row, result.as_json()))
        if added.rowcount:
            self.counts[result.status] += 1

    def pages(self, size: int = _PAGE) -> Iterator[list[Result]]:
        """Every result, by row, a page at a time."""
        last = -1
        while True:
            query = "SELECT row, record FROM results WHERE row > ? ORDER BY row LIMIT ?"
            found = self._database.execute(query, (last, size)).fetchall()
            if not found:
                return
            last = found[-1][0]
            yield [parse(record) for _, record in found]

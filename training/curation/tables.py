"""Records to Parquet and back, and to JSON lines for finished pieces of work; each file replaced in one step.

Columns follow from a record's fields; a fraction is stored as text (`24000/1001`), so that it stays exact.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from model.errors import DataError, MissingExtra

Record = TypeVar("Record")

_COLUMNS: dict[Any, str] = {
    int: "int64",
    float: "float64",
    float | None: "float64",
    bool: "bool",
    Fraction: "string",
    tuple[float, ...]: "list<float64>",
}
"""Arrow types by field type; anything else is text."""


def _hints(kind: type[Any]) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


_HINTS: dict[type[Any], dict[str, Any]] = {}
"""Kept, because finding them takes longer than the rest of a row."""


def to_row(record: Any) -> dict[str, Any]:
    """A record as a dict of what JSON and Arrow know."""
    row = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    return list(value) if isinstance(value, tuple) else value


def from_row(kind: type[Record], row: dict[str, Any]) -> Record:
    """The record that `to_row` made a row of."""
    hints = _hints(kind)
    return kind(**{name: _restored(hints[name], value) for name, value in row.items()})


def _restored(hint: Any, value: Any) -> Any:
    if hint is Fraction:
        return Fraction(value)
    return tuple(value) if hint == tuple[float, ...] else value


def write_table(path: Path, kind: type[Record], records: Iterable[Record]) -> None:
    """Write records, in their order, as one Parquet file.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    pa, pq = _arrow()
    types = {"list<float64>": pa.list_(pa.float64()), **{n: getattr(pa, n)() for n in ("int64", "float64", "string")}}
    types["bool"] = pa.bool_()
    schema = pa.schema([(name, types[_COLUMNS.get(hint, "string")]) for name, hint in _hints(kind).items()])
    table = pa.Table.from_pylist([to_row(record) for record in records], schema=schema)
    replace_file(path, lambda partial: pq.write_table(table, partial, compression="zstd"))


def read_table(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a table.

    Raises:
        DataError: there is no such table.
        MissingExtra: pyarrow is not installed.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: curate into this folder first")
    _, pq = _arrow()
    return [from_row(kind, row) for row in pq.read_table(path).to_pylist()]


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("reading and writing a curated dataset's tables", "curate") from None
    return pyarrow, pyarrow.parquet


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file beside `path`, then move it there: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    replace_file(path, lambda partial: partial.write_text(text))


class Parts:
    """Finished pieces of work: parts/STAGE/ab/KEY.jsonl, one record a line. A piece is there whole or not at all.

    A stage's name ends in a hash of its settings, so that work done under other settings is never mistaken for it.
    """

    def __init__(self, dataset: Path, stage: str, settings: object) -> None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
        self.folder = dataset / "parts" / f"{stage}-{digest}"

    @property
    def faults(self) -> Parts:
        """What went wrong with pieces of this stage, by the same keys."""
        other = copy.copy(self)
        other.folder = self.folder.with_name(f"{self.folder.name}-faults")
        return other

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.jsonl"

    def get(self, key: str, kind: type[Record]) -> list[Record] | None:
        """The piece's records, or None where it is not done."""
        path = self._path(key)
        if not path.exists():
            return None
        return [from_row(kind, json.loads(line)) for line in path.read_text().splitlines()]

    def put(self, key: str, records: Sequence[Record]) -> None:
        """Store a piece; storing it again changes nothing."""
        write_text(self._path(key), "".join(json.dumps(to_row(record)) + "\n" for record in records))

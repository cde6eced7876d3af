"""Render lists: manifests of requests, read as a stream and checked row by row. Imports no torch and no Ray.

A render list is JSON lines, CSV, Parquet, or a folder of pictures, never held in memory as a whole. A row that cannot
be read (a line that is no JSON) is reported as a fault of that row; the others go on. Rows count from 1, as they come;
blank lines and a CSV's head do not count.

Reading is one pass in order, so that a row which repeats an earlier one is found; the ids lie in a scratch file, not in
memory.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import posixpath
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self, cast

import numpy as np
from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from model.errors import DataError, InvalidRequest, MissingExtra, StillmotionError
from serving.offline.rows import RowContext, as_json, read_row, valid_row_id

PICTURES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"})
"""Files of a folder that are rows."""
_PARQUET_ROWS: Final = 256
_SHARD: Final = re.compile(r"(\d+)/(\d+)")
_PROTOCOLS: Final = {"s3": "s3", "s3a": "s3", "http": "batch", "https": "batch"}
"""Which extra brings what opens a URL."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Which rows of a manifest are meant.

    Args:
        shard: of `shards`, from 1: every `shards`-th row, beginning with this one.
        limit: of those, the first so many; None for all.
    """

    shard: int = 1
    shards: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check. Raises InvalidRequest."""
        if not 1 <= self.shard <= self.shards:
            raise InvalidRequest(f"a shard is i/n with 1 <= i <= n, not {self.shard}/{self.shards}", param="shard")
        if self.limit is not None and self.limit < 1:
            raise InvalidRequest(f"limit must be at least 1, not {self.limit}", param="limit")

    @classmethod
    def of(cls, shard: str | None, limit: int | None) -> Portion:
        """From the command line's `i/n`. Raises InvalidRequest."""
        if shard is None:
            return cls(limit=limit)
        match = _SHARD.fullmatch(shard)
        if match is None:
            raise InvalidRequest(f"a shard is written i/n, such as 2/8, not {shard!r}", param="shard")
        return cls(int(match.group(1)), int(match.group(2)), limit)

    def count(self, rows: int) -> int:
        """How many of so many rows are meant."""
        selected = len(range(self.shard, rows + 1, self.shards))
        return selected if self.limit is None else min(selected, self.limit)


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in the manifest.

    Args:
        values: by column.
        fault: why it cannot be read; `values` is then empty.
        text: as it stands, if it cannot be read.
    """

    number: int
    values: Mapping[str, Any]
    fault: InvalidRequest | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class RenderList:
    """Where rows come from.

    Args:
        url: a path or fsspec URL: .jsonl, .ndjson, .csv, .parquet, or a folder of pictures.
        kind: one of them.
        base: where pictures named by a relative path lie: beside the manifest.
    """

    url: str
    kind: str
    base: str

    @property
    def strict(self) -> bool:
        """Whether rows are read as JSON bodies; otherwise as forms."""
        return self.kind == "jsonl"

    def rows(self, portion: Portion | None = None) -> Iterator[RawRow]:
        """The rows, one by one.

        Raises:
            DataError: the file as a whole cannot be read.
        """
        portion = portion or Portion()
        every = _READERS[self.kind](self.url)
        selected = islice(every, portion.shard - 1, None, portion.shards)
        return islice(selected, portion.limit)

    def count(self) -> int:
        """How many rows there are: a quick pass over the file, or a look at its footer."""
        return _COUNTERS[self.kind](self.url)


def open_render_list(url: str) -> RenderList:
    """What the path or URL names.

    Raises:
        DataError: nothing is there, or of no kind that is known.
        MissingExtra: its protocol's or its format's package is not installed.
    """
    filesystem, path = filesystem_of(url)
    if not filesystem.exists(path):
        raise DataError(f"there is no manifest at {url}", param="manifest")
    if filesystem.isdir(path):
        return RenderList(url, "folder", "")
    kind = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}.get(
        posixpath.splitext(path)[1].lower()
    )
    if kind is None:
        raise DataError(f"{url} is no .jsonl, .csv or .parquet file, and no folder of pictures", param="manifest")
    return RenderList(url, kind, posixpath.dirname(_absolute(filesystem, path)))


def filesystem_of(url: str) -> tuple[Any, str]:
    """The fsspec filesystem and the path there; what is listed is never remembered, since others write there too.

    Raises:
        MissingExtra: the protocol's package is not installed.
        InvalidRequest: no such protocol, or one whose package none of our extras brings; the message names it.
    """
    protocol = url.partition("://")[0]
    try:
        filesystem, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        if protocol in _PROTOCOLS:
            raise MissingExtra(f"{protocol}://", _PROTOCOLS[protocol]) from error
        raise InvalidRequest(f"{url}: {error}", code="url_not_allowed") from error
    except ValueError as error:
        raise InvalidRequest(f"{url}: {error}", code="url_not_allowed") from error
    return filesystem, cast(str, path)


def _absolute(filesystem: Any, path: str) -> str:
    """With its protocol, where it is not a local one."""
    return path if _is_local(filesystem) else cast(str, filesystem.unstrip_protocol(path))


def _is_local(filesystem: Any) -> bool:
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _check_encoding(url: str, filesystem: Any, path: str) -> None:
    """Refuse UTF-16 and UTF-32, which spreadsheets save as "Unicode text": by their mark, or by their zero bytes."""
    with filesystem.open(path, "rb") as file:
        start: bytes = file.read(4)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise DataError(f"{url} is not UTF-8 but UTF-16 or UTF-32; save it as UTF-8", param="manifest")


def _lines(url: str) -> Iterator[bytes]:
    filesystem, path = filesystem_of(url)
    _check_encoding(url, filesystem, path)
    with filesystem.open(path, "rb") as file:
        yield from (line for line in file if not line.isspace())


def _json_rows(url: str) -> Iterator[RawRow]:
    for number, line in enumerate(_lines(url), 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:  # also what is no UTF-8
            yield _unreadable(number, f"the line is not valid JSON: {error}", line)
            continue
        if isinstance(values, dict):
            yield RawRow(number, values)
        else:
            yield _unreadable(number, f"the line is no JSON object but {type(values).__name__}", line)


def _unreadable(number: int, why: str, line: bytes) -> RawRow:
    return RawRow(number, {}, InvalidRequest(why, code="malformed_row"), line.decode(errors="replace"))


def _csv_records(url: str) -> Iterator[list[str] | csv.Error]:
    filesystem, path = filesystem_of(url)
    _check_encoding(url, filesystem, path)
    with filesystem.open(path, "rb") as file, io.TextIOWrapper(file, "utf-8-sig", "replace", newline="") as text:
        records = csv.reader(text)
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                yield error
                continue
            if record:
                yield record


def _csv_rows(url: str) -> Iterator[RawRow]:
    records = _csv_records(url)
    first = next(records, [])
    if isinstance(first, csv.Error):
        raise DataError(f"{url} has no head that can be read: {first}", param="manifest")
    head = [name.strip() for name in first]
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(head) == 1 and separator in head[0]:
            raise DataError(
                f"{url} separates its columns by {name}; save it as CSV with commas, or as JSON lines", param="manifest"
            )
    if len(set(head)) < len(head):
        raise DataError(f"{url} has a column twice: {', '.join(head)}", param="manifest")
    for number, record in enumerate(records, 1):
        if isinstance(record, csv.Error):
            yield RawRow(number, {}, InvalidRequest(f"the row cannot be read: {record}", code="malformed_row"))
        elif len(record) > len(head):
            why = f"the row has {len(record)} cells, its head names {len(head)}"
            yield RawRow(number, {}, InvalidRequest(why, code="malformed_row"), ",".join(record))
        else:
            yield RawRow(number, dict(zip(head, record, strict=False)))


def _parquet(url: str) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise MissingExtra("reading Parquet", "batch") from error
    filesystem, path = filesystem_of(url)
    try:
        return pq.ParquetFile(filesystem.open(path, "rb"))
    except pa.ArrowInvalid as error:
        raise DataError(f"{url} is no Parquet file: {error}", param="manifest") from error


def _parquet_rows(url: str) -> Iterator[RawRow]:
    number = 0
    with _parquet(url) as file:
        for batch in file.iter_batches(_PARQUET_ROWS):
            for values in batch.to_pylist():
                number += 1
                yield RawRow(number, values)


def _folder(url: str) -> Iterator[str]:
    """Every picture at and below the folder, by name."""
    filesystem, folder = filesystem_of(url)
    for path in sorted(filesystem.find(folder)):
        if posixpath.splitext(path)[1].lower() in PICTURES and not posixpath.basename(path).startswith("."):
            yield _absolute(filesystem, path)


def _folder_rows(url: str) -> Iterator[RawRow]:
    return (RawRow(number, {"image": picture}) for number, picture in enumerate(_folder(url), 1))


def _count_parquet(url: str) -> int:
    with _parquet(url) as file:
        return int(file.metadata.num_rows)


_READERS: Final[Mapping[str, Callable[[str], Iterator[RawRow]]]] = {
    "jsonl": _json_rows,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
    "folder": _folder_rows,
}
_COUNTERS: Final[Mapping[str, Callable[[str], int]]] = {
    "jsonl": lambda url: sum(1 for _ in _lines(url)),
    "csv": lambda url: max(0, sum(1 for _ in _csv_records(url)) - 1),
    "parquet": _count_parquet,
    "folder": lambda url: sum(1 for _ in _folder(url)),
}


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


def read_lines(manifest: RenderList, portion: Portion, reading: RowContext) -> Iterator[Line]:
    """Every row that is meant, in order, each checked but for its pictures."""
    with DuplicateCheck() as duplicates:
        for raw in manifest.rows(portion):
            yield _line(raw, manifest.strict, reading, duplicates)


def _line(raw: RawRow, strict: bool, reading: RowContext, duplicates: DuplicateCheck) -> Line:
    text = raw.text if raw.fault is not None else as_json(raw.values)
    row_id = valid_row_id(raw.values.get("id")) or f"row-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    try:
        if raw.fault is not None:
            raise raw.fault
        ask = read_row(raw.values, reading, strict=strict)
        row_id = ask.id
        duplicates.check(ask.id, ask.content, raw.number)
    except StillmotionError as error:
        if error.code == DuplicateCheck.CODE:  # the name belongs to the row before
            row_id = f"row-{hashlib.sha256(f'{raw.number} {text}'.encode()).hexdigest()[:16]}"
        return Line(raw.number, row_id, strict, text, error.code, _sayable(error.message), _sayable(error.param or ""))
    except Exception as error:  # noqa: BLE001 - the boundary: what nobody thought of is that row's fault, and the others go on
        message = f"the row cannot be read: {type(error).__name__}: {error}"
        return Line(raw.number, row_id, strict, text, "malformed_row", _sayable(message))
    return Line(raw.number, row_id, strict, text)


def _sayable(text: str) -> str:
    """Without half characters, which JSON can hold and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


class DuplicateCheck:
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
            message = f"the row says the same as row {first}: leave it out, or give it a seed or an id of its own"
        else:
            message = f"id {row_id!r} was used in row {first} already"
        raise InvalidRequest(message, code=self.CODE, param="id")


class NameSet:
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


def in_packets(lines: Iterable[Line], done: NameSet, most: int) -> Iterator[list[Line]]:
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

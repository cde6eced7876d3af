"""Results as Arrow tables, and the table files of a finished run: JSON lines and Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from serving.offline.result_log import COLUMNS, Result

_TYPES: Final[dict[str, Any]] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "str": pa.string(),
    "Status": pa.string(),
}
SCHEMA: Final = pa.schema([(name, _TYPES[kind]) for name, kind in COLUMNS.items()])
_PACKET: Final = pa.schema([("results", pa.list_(pa.struct(list(SCHEMA))))])


def results_table(results: Iterable[Result]) -> pa.Table:
    """One row a result."""
    return pa.Table.from_pylist([asdict(result) for result in results], SCHEMA)


def packed(results: Iterable[Result]) -> pa.Table:
    """All in one row, which Ray Data does not take apart."""
    return pa.Table.from_pylist([{"results": [asdict(result) for result in results]}], _PACKET)


def unpacked(table: pa.Table) -> Iterator[Result]:
    """The results of rows made by `packed`."""
    return (Result(**values) for packet in table.column("results").to_pylist() for values in packet)


def write_tables(pages: Iterable[list[Result]], jsonl: Path, parquet: Path) -> None:
    """Both files, page by page."""
    with jsonl.open("wb") as lines, pq.ParquetWriter(parquet, SCHEMA) as table:
        for page in pages:
            lines.writelines(result.as_json() + b"\n" for result in page)
            table.write_table(results_table(page))

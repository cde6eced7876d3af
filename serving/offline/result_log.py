"""What became of a row: one flat record, the same in a record's file, the result table and a Ray Dataset.

What a run has heard of so far: results in a scratch file, given back in the manifest's order.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from types import TracebackType
from typing import Any, Literal, Self

from model.errors import StillmotionError
from serving.engine.protocol import Completed
from serving.offline.output import THUMBNAILS, VIDEOS
from serving.offline.rows import Ask
from serving.provenance.finish import Finished

Status = Literal["completed", "failed"]
Json = bytes
"""A JSON text, encoded; a column is called `bytes`, so the type needs another name here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A row that has ended.

    Args:
        row: its number in the manifest, from 1; 0 where rows have none.
        id: names its files.
        content: SHA-256 of the row (serving.offline.rows.Ask); empty where the row cannot be read.
        seed: the one used; -1 where the row failed before there was one.
        video, thumbnail: relative to the output folder.
        sha256: of the file; frames_sha256: of the decoded RGB frames, to compare videos by.
        params, metadata: JSON.
        attempts: how often it was tried.
        error_column: the manifest's column at fault, if one is.
        fetch_s, ...: seconds a phase; `write_s` is the upload.
        ended_at: Unix seconds.
    """

    row: int
    id: str
    status: Status
    content: str = ""
    task: str = ""
    model: str = ""
    model_version: str = ""
    seed: int = -1
    video: str = ""
    thumbnail: str = ""
    sha256: str = ""
    frames_sha256: str = ""
    bytes: int = 0
    num_frames: int = 0
    width: int = 0
    height: int = 0
    fps: int = 0
    degraded: bool = False
    params: str = "{}"
    metadata: str = "{}"
    attempts: int = 0
    error_code: str = ""
    error_message: str = ""
    error_column: str = ""
    fetch_s: float = 0.0
    queued_s: float = 0.0
    encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    mux_s: float = 0.0
    write_s: float = 0.0
    ended_at: float = 0.0

    def as_json(self) -> Json:
        """A record's file."""
        return json.dumps(asdict(self)).encode()


COLUMNS: Mapping[str, str] = {field.name: str(field.type) for field in fields(Result)}
"""Name and Python type of each column."""


def parse(data: bytes) -> Result:
    """A record from its file; what a later version added is left out."""
    values = json.loads(data)
    return Result(**{name: values[name] for name in COLUMNS if name in values})


def failure(row: int, row_id: str, error: StillmotionError, ask: Ask | None = None, attempts: int = 0) -> Result:
    """A row that failed."""
    about: dict[str, Any] = {} if ask is None else _about(ask)
    return Result(
        row=row,
        id=row_id,
        status="failed",
        attempts=attempts,
        error_code=error.code,
        error_message=error.message,
        error_column=error.param or "",
        ended_at=time.time(),
        **about,
    )


def success(
    row: int, ask: Ask, made: Completed, finished: Finished, *, attempts: int, timings: Mapping[str, float]
) -> Result:
    """A row whose video is written."""
    phases: dict[str, Any] = {f"{phase}_s": round(seconds, 4) for phase, seconds in timings.items()}
    return Result(
        row=row,
        id=ask.id,
        status="completed",
        video=video_name(ask),
        thumbnail=thumbnail_name(ask),
        sha256=finished.video_sha256,
        frames_sha256=made.frames_sha256,
        bytes=len(finished.video),
        num_frames=made.num_frames,
        width=made.width,
        height=made.height,
        fps=made.fps,
        degraded=made.degraded,
        attempts=attempts,
        ended_at=time.time(),
        **{name: seconds for name, seconds in phases.items() if name in COLUMNS},
        **_about(ask),
    )


def video_name(ask: Ask) -> str:
    """Where a row's video goes."""
    return f"{VIDEOS}/{ask.id}.{ask.output_format}"


def thumbnail_name(ask: Ask) -> str:
    """Where a row's thumbnail goes."""
    return f"{THUMBNAILS}/{ask.id}.jpg"


def _about(ask: Ask) -> dict[str, Any]:
    return {
        "content": ask.content,
        "task": ask.entry.task.name,
        "model": ask.entry.name,
        "model_version": ask.entry.version,
        "seed": ask.params.seed,
        "params": json.dumps(asdict(ask.params)),
        "metadata": json.dumps(dict(ask.metadata)),
    }


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

"""Results of rows: one flat record each, and the log of a run's results in a scratch file, by row.

The record is the same in a record's file, the result table and a Ray Dataset.
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
from serving.offline.rows import RowRequest
from serving.provenance.video_manifest import Finished

Status = Literal["completed", "failed"]
Json = bytes
"""A JSON text, encoded; a column is called `bytes`, so the type needs another name here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A row that has ended.

    Args:
        row: its number in the manifest, from 1; 0 where rows have none.
        id: names its files.
        content: SHA-256 of the row (serving.offline.rows.RowRequest); empty where the row cannot be read.
        seed: the one used; -1 where the row failed before there was one.
        video, thumbnail: relative to the output folder.
        sha256: of the file; frames_sha256: of the decoded RGB frames, to compare videos by.
        pictures: JSON, where its pictures lie, in the order of the task's inputs; null for bytes in the row.
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
    pictures: str = "[]"
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


def failure(
    row: int, row_id: str, error: StillmotionError, request: RowRequest | None = None, attempts: int = 0
) -> Result:
    """A row that failed."""
    about: dict[str, Any] = {} if request is None else _about(request)
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
    row: int,
    request: RowRequest,
    completed: Completed,
    finished: Finished,
    *,
    attempts: int,
    timings: Mapping[str, float],
) -> Result:
    """A row whose video is written."""
    phases: dict[str, Any] = {f"{phase}_s": round(seconds, 4) for phase, seconds in timings.items()}
    return Result(
        row=row,
        id=request.id,
        status="completed",
        video=video_name(request),
        thumbnail=thumbnail_name(request),
        sha256=finished.video_sha256,
        frames_sha256=completed.frames_sha256,
        bytes=len(finished.video),
        num_frames=completed.num_frames,
        width=completed.width,
        height=completed.height,
        fps=completed.fps,
        degraded=completed.degraded,
        attempts=attempts,
        ended_at=time.time(),
        **{name: seconds for name, seconds in phases.items() if name in COLUMNS},
        **_about(request),
    )


def video_name(request: RowRequest) -> str:
    """Where a row's video goes."""
    return f"{VIDEOS}/{request.id}.{request.output_format}"


def thumbnail_name(request: RowRequest) -> str:
    """Where a row's thumbnail goes."""
    return f"{THUMBNAILS}/{request.id}.jpg"


def _about(request: RowRequest) -> dict[str, Any]:
    return {
        "content": request.content,
        "task": request.entry.task.name,
        "model": request.entry.name,
        "model_version": request.entry.version,
        "seed": request.params.seed,
        "params": json.dumps(asdict(request.params)),
        "pictures": json.dumps([one if isinstance(one, str) else None for one in request.pictures]),
        "metadata": json.dumps(dict(request.metadata)),
    }


_PAGE = 500


class ResultLog:
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
        """Note a row's result; one that is added again counts once."""
        added = self._database.execute("INSERT OR IGNORE INTO results VALUES (?, ?)", (result.row, result.as_json()))
        if added.rowcount:
            self.counts[result.status] += 1

    def pages(self, size: int = _PAGE) -> Iterator[list[Result]]:
        """Every result, by row, a page at a time."""
        last = -1
        while True:
            query = "SELECT row, record FROM results WHERE row > ? ORDER BY row LIMIT ?"
            rows = self._database.execute(query, (last, size)).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [parse(record) for _, record in rows]

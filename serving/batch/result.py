"""What became of a row: one flat record, the same in a record's file, the result table and a Ray Dataset."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from model.errors import StillmotionError
from serving.batch.output import THUMBNAILS, VIDEOS
from serving.batch.rows import Ask
from serving.engine.protocol import Completed
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
        content: SHA-256 of the row (serving.batch.rows.Ask); empty where the row cannot be read.
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

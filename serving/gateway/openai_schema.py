"""OpenAI's video and model objects, and how their fields map to ours (docs/openai.md has the same as a table).

`seconds` and `size` are wishes there, while a checkpoint makes clips of fixed lengths and of sizes near the one it was
trained at: the nearest possible clip is made, and the answer says what that is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from stillmotion.types import Job

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.interpolation import FACTOR


class VideoError(BaseModel):
    """Why a video failed; `cancelled` and `expired` are codes here, since there are only four statuses."""

    code: str
    message: str


class Video(BaseModel):
    """A generation."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    size: str = Field(description="WIDTHxHEIGHT of what is made, which may differ from what was wished")
    seconds: str = Field(description="length of what is made, which may differ from what was wished")
    prompt: str | None = None
    remixed_from_video_id: None = None
    error: VideoError | None = None
    warnings: list[str] = Field(
        default_factory=list[str], description="prompt_unused: the model's task takes no text; it was only recorded"
    )


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class VideoDeleted(BaseModel):
    """A video is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(BaseModel):
    """A checkpoint that can be named as `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "stillmotion"


class Models(BaseModel):
    """Every checkpoint that can be named as `model`."""

    object: Literal["list"] = "list"
    data: list[Model]


class ImageReference(BaseModel):
    """A picture by URL: `data:` always, others where the operator allows URLs."""

    model_config = ConfigDict(extra="forbid")

    image_url: str = Field(max_length=40_000_000)


class VideoForm(BaseModel):
    """The fields of POST /v1/videos besides a picture's file."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=32_000, description="what is to be seen; recorded where unused")
    model: str | None = Field(None, description="which checkpoint; GET /v1/models lists them")
    seconds: str | None = Field(None, max_length=20, description="the nearest length the checkpoint makes is made")
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT: the nearest the checkpoint makes is made")


PROMPT_KEY: Final = "openai.prompt"
"""Under which label the prompt lies in a job's metadata."""
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})\Z")
_SECONDS: Final = re.compile(r"\d{1,3}(\.\d{1,3})?\Z")
_STATUSES: Final[dict[str, Literal["queued", "in_progress", "completed", "failed"]]] = {
    "queued": "queued",
    "in_progress": "in_progress",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
    "expired": "failed",
}
_ENDS: Final = {
    "cancelled": VideoError(code="cancelled", message="the job was cancelled"),
    "expired": VideoError(code="expired", message="the job did not begin in time, or its files were removed"),
}


def frames_for(entry: ModelEntry, seconds: str | None) -> int | None:
    """The frame count nearest to `seconds` at the checkpoint's own fps; None for its default.

    Raises:
        InvalidRequest: not a positive number of seconds.
    """
    if seconds is None:
        return None
    if not _SECONDS.match(seconds) or float(seconds) <= 0:
        raise InvalidRequest(f"seconds must be a positive number such as 4, not {seconds[:20]!r}", param="seconds")
    wished = float(seconds) * float(entry.defaults["fps"])
    return min(entry.num_frames, key=lambda count: (abs(count - wished), count))


def size_for(entry: ModelEntry, size: str | None) -> tuple[int, int] | None:
    """Width and height: as wished where the checkpoint can, else of that aspect at its own area; None for its default.

    Raises:
        InvalidRequest: not a size.
    """
    if size is None:
        return None
    match = _SIZE.match(size)
    if match is None or 0 in (width := int(match[1]), height := int(match[2])):
        raise InvalidRequest(f"size must be WIDTHxHEIGHT in pixels, not {size[:20]!r}", param="size")
    largest = 4 * max(entry.width, entry.height)
    fits = all(side % entry.unit == 0 and entry.unit <= side <= largest for side in (width, height))
    if fits and width * height <= entry.width * entry.height:
        return width, height
    scale = math.sqrt(entry.width * entry.height / (width * height))
    return _rounded(width * scale, entry.unit, largest), _rounded(height * scale, entry.unit, largest)


def _rounded(side: float, unit: int, largest: int) -> int:
    return min(max(unit, round(side / unit) * unit), largest // unit * unit)


def video(job: Job) -> Video:
    """A job as OpenAI's clients read it."""
    params = job.params
    error = _ENDS.get(job.status)
    if job.error is not None:
        error = VideoError(code=job.error.code, message=job.error.message)
    prompt = job.metadata.get(PROMPT_KEY)
    return Video(
        id=job.id,
        model=job.model,
        status=_STATUSES[job.status],
        progress=job.progress,
        created_at=int(job.created_at),
        completed_at=None if job.completed_at is None else int(job.completed_at),
        expires_at=None if job.expires_at is None else int(job.expires_at),
        size=f"{params['width']}x{params['height']}",
        seconds=_seconds(params),
        prompt=params.get("prompt") or prompt,
        error=error,
        warnings=[] if prompt is None else ["prompt_unused"],
    )


def _seconds(params: Mapping[str, Any]) -> str:
    """How long a job's clip plays; a chained one has more frames at a higher rate."""
    frames, fps = params["num_frames"], params["fps"]
    if "interpolate" in params:
        frames, fps = FACTOR * (frames - 1) + 1, FACTOR * fps
    return f"{frames / fps:.3f}".rstrip("0").rstrip(".")

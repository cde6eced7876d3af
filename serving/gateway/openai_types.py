"""The shapes that OpenAI's clients read and write for videos and models; only those that this service speaks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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

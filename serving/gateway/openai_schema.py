"""OpenAI's video and model objects, and how a request's fields map to ours (docs/openai.md has the same as a table).

`seconds`, `num_frames` and `size` are wishes there, while a checkpoint makes clips of fixed lengths and of sizes near
the one it was trained at: the nearest possible clip is made, and the answer says what that is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from stillmotion.types import REQUESTS, Job

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.interpolation import FACTOR
from model.stages import ClipSize
from serving.gateway.errors import first_problem
from serving.gateway.images import PictureSource
from serving.gateway.openai_request import VideoForm, positive_seconds
from serving.gateway.submit import JobRequest
from serving.interpolation.plan import StageWishes
from serving.jobs.records import params_from_json


class VideoError(BaseModel):
    """Why a video failed; `cancelled` and `expired` are codes here, since there are only four statuses."""

    code: str
    message: str


class Video(BaseModel):
    """A generation: OpenAI's fields, then those that other servers answer with besides."""

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
        default_factory=list[str],
        description="prompt_unused: the model's task takes no text, it was only recorded; size_changed, "
        "num_frames_changed: what was wished is not what the model makes",
    )
    quality: Literal["standard"] = "standard"
    num_frames: int = Field(description="of what is made")
    fps: int = Field(description="at which it plays")
    seed: int
    num_inference_steps: int
    media_type: Literal["video/mp4"] = "video/mp4"
    url: str | None = Field(None, description="where the file is, in full, once it is completed")
    file_name: str | None = Field(None, description="of the file, once it is completed")
    inference_time_s: float | None = Field(None, description="from the begin of the work to its end")
    stage_durations: dict[str, float] = Field(
        default_factory=dict[str, float], description="seconds in each phase, once it is completed"
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


PROMPT_KEY: Final = "openai.prompt"
"""Under which label the prompt lies in a job's metadata, where the task takes none."""
_USER_KEY: Final = "openai.user"
_SIZE_KEY: Final = "openai.size"
_FRAMES_KEY: Final = "openai.num_frames"
_MAX_LABEL: Final = 2000
"""Characters recorded of a prompt that the task does not use: it is written with every event of the job."""
_INTERPOLATION_EXP: Final = 2
"""Four times the frames, as the exponent of two."""
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})\Z")
_STATUSES: Final[dict[str, Literal["queued", "in_progress", "completed", "failed"]]] = {
    "queued": "queued",
    "in_progress": "in_progress",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
    "expired": "failed",
}
_WARNINGS: Final = {PROMPT_KEY: "prompt_unused", _SIZE_KEY: "size_changed", _FRAMES_KEY: "num_frames_changed"}
_ENDS: Final = {
    "cancelled": VideoError(code="cancelled", message="the job was cancelled"),
    "expired": VideoError(code="expired", message="the job did not begin in time, or its files were removed"),
}


def job_request(entry: ModelEntry, form: VideoForm, picture: PictureSource | None) -> JobRequest:
    """The job that a form orders of this checkpoint.

    Raises:
        InvalidRequest: a field that the checkpoint's task cannot heed, or a value that means nothing.
    """
    takes_prompt = "prompt" in entry.task.settings
    settings, labels = _clip(entry, form)
    if takes_prompt:
        settings["prompt"] = form.prompt
    else:
        labels[PROMPT_KEY] = form.prompt[:_MAX_LABEL]
    if form.user is not None:
        labels[_USER_KEY] = form.user
    settings |= {"seed": form.seed, "num_inference_steps": form.num_inference_steps} | _guidance(entry, form)
    if form.lora is not None:
        settings |= {"lora": form.lora.name, "lora_scale": form.lora.scale}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= _extra(entry, form, settings)
    return JobRequest(
        task=entry.task.name,
        model=entry.name,
        settings=settings,
        pictures=() if picture is None else (picture,),
        body=form.model_dump(mode="json"),
        metadata=labels,
        stages=StageWishes(interpolate=_interpolate(form)),
    )


def _clip(entry: ModelEntry, form: VideoForm) -> tuple[dict[str, Any], dict[str, str]]:
    """Frames, rate and size of the clip that is made, and the wishes that are not met."""
    settings: dict[str, Any] = {"fps": form.wished("fps")}
    labels: dict[str, str] = {}
    wished = form.wished("num_frames")
    if wished is None:
        settings["num_frames"] = frames_for(entry, form.seconds, settings["fps"])
    else:
        settings["num_frames"] = _nearest_count(entry, wished)
        if settings["num_frames"] != wished:
            labels[_FRAMES_KEY] = str(wished)
    size = size_for(entry, form.wished_size)
    if size is not None:
        settings["width"], settings["height"] = size
        if form.wished_size != f"{size[0]}x{size[1]}":
            labels[_SIZE_KEY] = form.wished_size or ""
    return settings, labels


def _guidance(entry: ModelEntry, form: VideoForm) -> dict[str, float]:
    """`guidance_scale` is the largest along the frames; the smallest is at most that."""
    if form.guidance_scale is None:
        return {}
    scale = form.guidance_scale
    if "min_guidance_scale" not in entry.task.settings:
        return {"max_guidance_scale": scale}
    return {"max_guidance_scale": scale, "min_guidance_scale": min(scale, float(entry.defaults["min_guidance_scale"]))}


def _interpolate(form: VideoForm) -> bool:
    exponent = form.frame_interpolation_exp
    if form.enable_frame_interpolation and exponent not in (None, _INTERPOLATION_EXP):
        raise InvalidRequest(
            f"frame_interpolation_exp must be {_INTERPOLATION_EXP}: the frames between are made three at a time, for "
            f"{FACTOR} times the rate",
            param="frame_interpolation_exp",
        )
    return form.enable_frame_interpolation


def _extra(entry: ModelEntry, form: VideoForm, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The task's own settings in `extra_params`, checked as POST /generate/... checks them."""
    extra = form.extra_params or {}
    legal = sorted(entry.task.settings - {"prompt"})
    for name in extra:
        if name not in legal:
            raise InvalidRequest(
                f"{entry.task.name} has no setting {name[:100]!r}; extra_params takes {', '.join(legal)}",
                code="unknown_field",
                param=f"extra_params.{name[:100]}",
            )
        if name in settings:
            raise InvalidRequest(f"{name} is given twice", code="duplicate_field", param=f"extra_params.{name}")
    kind = REQUESTS[entry.task.name][0]
    prompt = {"prompt": form.prompt} if "prompt" in entry.task.settings else {}
    try:
        checked = kind.model_validate({**prompt, **extra})
    except ValidationError as error:
        problem = first_problem(error, entry.task.name)
        raise InvalidRequest(problem.message, code=problem.code, param=f"extra_params.{problem.param}") from error
    return {name: getattr(checked, name) for name in extra}


def frames_for(entry: ModelEntry, seconds: str | None, fps: int | None = None) -> int | None:
    """The frame count nearest to `seconds` at `fps`, or the checkpoint's own; None for its default.

    Raises:
        InvalidRequest: not a positive number of seconds.
    """
    if seconds is None:
        return None
    return _nearest_count(entry, positive_seconds(seconds) * float(fps or entry.defaults["fps"]))


def _nearest_count(entry: ModelEntry, wished: float) -> int:
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


def video(job: Job, request: Request) -> Video:
    """A job as OpenAI's clients read it, and those of other servers.

    `url` begins with the scheme and host that this request was sent to: AIPerf asks for it as it stands.
    """
    params = job.params
    made = _size(job)
    frames, fps = made.num_frames, made.fps
    error = _ENDS.get(job.status)
    if job.error is not None:
        error = VideoError(code=job.error.code, message=job.error.message)
    prompt = job.metadata.get(PROMPT_KEY)
    done = job.status == "completed"
    took = job.started_at and job.completed_at and job.completed_at - job.started_at
    return Video(
        id=job.id,
        model=job.model,
        status=_STATUSES[job.status],
        progress=job.progress,
        created_at=int(job.created_at),
        completed_at=None if job.completed_at is None else int(job.completed_at),
        expires_at=None if job.expires_at is None else int(job.expires_at),
        size=f"{made.width}x{made.height}",
        seconds=f"{frames / fps:.3f}".rstrip("0").rstrip("."),
        prompt=params.get("prompt") or prompt,
        error=error,
        warnings=[warning for key, warning in _WARNINGS.items() if key in job.metadata],
        num_frames=frames,
        fps=fps,
        seed=job.seed,
        num_inference_steps=params["num_inference_steps"],
        url=str(request.url_for("get_video_content", video_id=job.id)) if done else None,
        file_name=f"{job.id}.{params['output_format']}" if done else None,
        inference_time_s=took if done else None,
        stage_durations=job.timings,
    )


def _size(job: Job) -> ClipSize:
    """What a job's video measures, its later stages included."""
    try:
        params, stages = params_from_json(job.task, job.params)
    except (InvalidRequest, KeyError, TypeError):  # stored by another version
        given = job.params
        return ClipSize(given["num_frames"], given["height"], given["width"], given["fps"])
    return stages.size(params)

"""The wire types: what travels between a client and the service, defined once, here and in `_requests`.

The gateway imports these; so a field exists on both sides or on neither. Unknown fields are refused in requests and
ignored in answers (an older client reads a newer server).
"""

from __future__ import annotations

import base64
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stillmotion._requests import (
    REQUESTS,
    BatchLine,
    Elevation,
    ExtendRequest,
    FrameInterpolationBody,
    FrameInterpolationRequest,
    GenerationRequest,
    ImageData,
    ImageToVideoBody,
    ImageToVideoRequest,
    Interpolate,
    InterpolateRequest,
    Label,
    LabelName,
    LoraName,
    LoraScale,
    MultiViewBody,
    MultiViewRequest,
    OutputFormat,
    Priority,
    ResizeMode,
    Scale,
    Schedule,
    Seconds,
    Solver,
    StageRequest,
    Strength,
    TextToVideoBody,
    TextToVideoRequest,
    UploadId,
    UploadIntent,
    UpscaleRequest,
    Webhook,
)

__all__ = [
    "REQUESTS",
    "TERMINAL_STATUSES",
    "Batch",
    "BatchCounts",
    "BatchLine",
    "BatchResult",
    "BatchUrls",
    "Elevation",
    "ErrorBody",
    "ErrorResponse",
    "ExtendRequest",
    "FrameInterpolationBody",
    "FrameInterpolationRequest",
    "GenerationRequest",
    "Health",
    "ImageData",
    "ImageToVideoBody",
    "ImageToVideoRequest",
    "Interpolate",
    "InterpolateRequest",
    "Job",
    "JobEngine",
    "JobError",
    "JobEvent",
    "JobList",
    "JobOutput",
    "JobPhase",
    "JobStatus",
    "JobUrls",
    "KeyInfo",
    "KeyList",
    "Label",
    "LabelName",
    "LoraInfo",
    "LoraName",
    "LoraScale",
    "ModelInfo",
    "ModelList",
    "MultiViewBody",
    "MultiViewRequest",
    "OutputFormat",
    "Preview",
    "Priority",
    "ResizeMode",
    "Scale",
    "Schedule",
    "Seconds",
    "SignedUpload",
    "Solver",
    "StageRequest",
    "Strength",
    "TextToVideoBody",
    "TextToVideoRequest",
    "Upload",
    "UploadId",
    "UploadIntent",
    "UpscaleRequest",
    "Variant",
    "Webhook",
]

JobStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]
JobPhase = Literal["queued", "encode", "denoise", "decode", "extend", "interpolate", "upscale", "mux"]
Variant = Literal["video", "thumbnail", "frames", "manifest", "preview"]
TERMINAL_STATUSES: frozenset[str] = frozenset({"completed", "failed", "cancelled", "expired"})


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ErrorBody(_Answer):
    """What went wrong: `type` the class of error, `code` stable, `param` the field at fault."""

    type: str
    code: str
    message: str
    param: str | None = None
    request_id: str | None = None


class ErrorResponse(_Answer):
    """The body of every answer from 400 up."""

    error: ErrorBody


class JobError(_Answer):
    """Why a job failed."""

    code: str
    message: str


class JobOutput(_Answer):
    """The finished video."""

    url: str
    sha256: str
    frames_sha256: str
    bytes: int
    width: int
    height: int
    num_frames: int
    fps: int
    degraded: bool = False


class JobEngine(_Answer):
    """What ran a completed job; of one with several stages, its first."""

    host: str = Field("", description="the engine's machine, as it calls itself")
    device: str = Field("", description="such as cpu or cuda:1")
    device_name: str = Field("", description="such as the GPU's product name")


class JobUrls(_Answer):
    """Where to go from a job."""

    self: str
    cancel: str
    events: str
    content: str


class Job(_Answer):
    """One generation, from submission to result. Times are Unix seconds."""

    id: str
    object: Literal["job"] = "job"
    task: str
    status: JobStatus
    phase: JobPhase
    progress: int = Field(ge=0, le=100)
    step: int
    total_steps: int
    queue_position: int | None = None
    eta_s: float | None = None
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    model: str
    model_version: str
    seed: int
    params: dict[str, Any]
    metadata: dict[str, str] = Field(default_factory=dict[str, str])
    timings: dict[str, float] = Field(default_factory=dict[str, float])
    cancelled_at_step: int | None = None
    engine: JobEngine | None = None
    output: JobOutput | None = None
    error: JobError | None = None
    urls: JobUrls

    @property
    def is_terminal(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in TERMINAL_STATUSES


class JobList(_Answer):
    """A page of jobs; `last_id` is the `after` of the next."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool
    last_id: str | None = None


class BatchCounts(_Answer):
    """How many rows have each status."""

    queued: int = 0
    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0


class BatchUrls(_Answer):
    """Where to go from a batch."""

    self: str
    cancel: str
    results: str


class Upload(_Answer):
    """A picture that was sent apart from the requests that name it. Times are Unix seconds."""

    id: str = Field(description="upload_ and the SHA-256 of its bytes; goes into `image: {upload: ...}`")
    object: Literal["upload"] = "upload"
    status: Literal["waiting", "stored"] = Field(description="waiting: it was not PUT to S3 yet")
    bytes: int
    created_at: float
    expires_at: float


class SignedUpload(_Answer):
    """Where to PUT a picture; `url` is null where it is there already."""

    upload: Upload
    method: Literal["PUT"] = "PUT"
    url: str | None = Field(description="of S3, good for some minutes, for this one picture")
    headers: dict[str, str] = Field(description="to send with it, as they are")


class Batch(_Answer):
    """Many jobs submitted together; completed once every row has ended, however it did."""

    id: str
    object: Literal["batch"] = "batch"
    status: Literal["in_progress", "completed"]
    created_at: float
    total: int
    counts: BatchCounts
    urls: BatchUrls


class BatchResult(_Answer):
    """One line of a batch's results: a row that has ended; `row` counts from 0."""

    custom_id: str
    row: int
    job: Job


class Preview(_Answer):
    """What the clip will look like, guessed after `step` steps: a small JPEG, a strip of its frames.

    `data` is its base64, null in events told again after a newer one has taken its place; `url` gives the newest.
    """

    step: int
    url: str
    data: str | None = None

    @property
    def jpeg(self) -> bytes | None:
        """The JPEG's bytes, where the event brought them."""
        return None if self.data is None else base64.b64decode(self.data)


class JobEvent(_Answer):
    """One server-sent event of a job: `id` counts up from 1 within the job, `job` is its state then."""

    id: int
    event: Literal["queued", "phase", "step", "preview", "decode", "completed", "failed", "cancelled", "expired"]
    job: Job
    preview: Preview | None = Field(None, description="in `preview` events")


class LoraInfo(_Answer):
    """An adapter that a checkpoint can be asked to work with."""

    id: str
    object: Literal["lora"] = "lora"
    version: str
    rank: int
    base: str = Field(
        "", description="NAME@VERSION of the checkpoint it was trained on; empty if its file does not say"
    )


class ModelInfo(_Answer):
    """A checkpoint that can be served."""

    id: str
    object: Literal["model"] = "model"
    task: str
    version: str
    num_frames: list[int]
    width: int
    height: int
    defaults: dict[str, Any]
    previews: bool = Field(False, description="whether it can be asked for previews")
    loras: list[LoraInfo] = Field(default_factory=list[LoraInfo], description="what `lora` can name")


class ModelList(_Answer):
    """Every checkpoint that can be served."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class KeyInfo(_Answer):
    """An API key without its secret; limits that are null do not exist. Times are Unix seconds."""

    id: str
    object: Literal["key"] = "key"
    name: str
    weight: float
    per_minute: int | None = None
    max_jobs: int | None = None
    operator: bool = False
    created_at: float
    revoked_at: float | None = None


class KeyList(_Answer):
    """Every API key, the revoked ones too."""

    object: Literal["list"] = "list"
    data: list[KeyInfo]


class Health(_Answer):
    """Answer of the health routes."""

    status: Literal["live", "ready", "not_ready"]
    detail: str | None = None

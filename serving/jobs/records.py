"""The frozen types of the job store, and a stored job's parameters as JSON.

A job's row becomes the wire's `Job` in `to_wire`; its `params` hold the settings of its task, and of each of its later
stages, by name (model.stages).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from stillmotion.types import Job, JobEngine, JobError, JobOutput, JobUrls, Variant

from model.params import OutputFormat, Params
from model.stages import NAMES, Stages
from model.tasks import TASKS
from serving.engine.protocol import Priority, Share
from serving.jobs.tables import JobRow

_BESIDE: Final = frozenset({"output_format", *NAMES})
"""What lies among a job's params and is no setting of its task."""


def params_to_json(params: Params, output_format: OutputFormat, stages: Stages) -> dict[str, Any]:
    """A job's `params` as they are stored, and shown to callers."""
    return {**asdict(params), "output_format": output_format, **stages.as_dict()}


def params_from_json(task: str, stored: Mapping[str, Any]) -> tuple[Params, Stages]:
    """What `params_to_json` wrote.

    Raises:
        InvalidRequest, KeyError, TypeError: it was stored by another version.
    """
    params = TASKS[task].params(**{name: value for name, value in stored.items() if name not in _BESIDE})
    return params, Stages.from_dict(stored, params.seed)


def total_steps(params: Params, stages: Stages) -> int:
    """Steps of a job, all stages: solver steps, and frames made larger."""
    return params.num_inference_steps + sum(stages.steps(params).values())


PRIORITIES: Final[dict[Priority, int]] = {"offline": -1, "low": 0, "normal": 1, "high": 2}
CLASSES: Final[dict[int, Priority]] = {number: name for name, number in PRIORITIES.items()}
OFFLINE: Final = PRIORITIES["offline"]


def input_names(count: int) -> tuple[str, ...]:
    """The files of a job's pictures, in the order of its task's spec."""
    return ("input.png", *(f"input-{number}.png" for number in range(2, count + 1)))[:count]


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long things last, in seconds.

    Args:
        lease_s: a server that is not heard of for so long has lost its jobs; they are run again.
        waiting_s: a job that has not begun by then expires.
        kept_s: an ended job is removed so long after its end, files and all; None: never.
        attempts: (a count) a job whose server was lost so often fails.
    """

    lease_s: float = 15.0
    waiting_s: float = 7 * 86400.0
    kept_s: float | None = 30 * 86400.0
    attempts: int = 50


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """Where the news of a job's end goes; `secret` (whsec_...) signs it, None leaves that to the server's own."""

    url: str
    secret: str | None = None


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """Which row of which batch a job is; `custom_id` is the caller's own name for it."""

    batch_id: str
    row: int
    custom_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be stored: everything resolved, nothing left to default later.

    Args:
        params: complete settings, JSON-ready.
        body_hash: SHA-256 over what the caller sent, to tell a repeat from another request under the same key.
        owner: the API key's id; empty where there are no keys.
        weight: of the owner's share of the engine.
        deadline_s: seconds from now by which the result is wanted; a job that has not begun by then expires.
        identity: hash of all that its video depends on (`serving.jobs.reuse`).
    """

    id: str
    task: str
    model: str
    model_version: str
    seed: int
    params: Mapping[str, Any]
    total_steps: int
    output_format: OutputFormat
    priority: Priority
    metadata: Mapping[str, str]
    body_hash: str
    idempotency_key: str | None = None
    owner: str = ""
    weight: float = 1.0
    deadline_s: float | None = None
    webhook: WebhookTarget | None = None
    batch: BatchPlace | None = None
    previews: bool = False
    identity: str | None = None


@dataclass(frozen=True, slots=True)
class LeasedJob:
    """What the dispatcher needs to run a job.

    Args:
        attempt: which lease of the job this is, counted from 1.
    """

    id: str
    task: str
    model: str
    params: Mapping[str, Any]
    output_format: OutputFormat
    share: Share
    attempt: int
    previews: bool = False


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One finished file of a job."""

    name: str
    media_type: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ProgressUpdate:
    """How far a running job came; None leaves a value as it is."""

    phase: str
    progress: int
    step: int | None = None
    eta_s: float | None = None
    engine_position: int | None = None


@dataclass(frozen=True, slots=True)
class Success:
    """A completed job's result; `engine` says which ran it (of several stages, the first)."""

    output: JobOutput
    files: Mapping[Variant, StoredFile]
    timings: Mapping[str, float] = field(default_factory=dict[str, float])
    engine: Mapping[str, str] | None = None


def preview_name(step: int, attempt: int) -> str:
    """The file of a job's preview after so many steps: one for each, so that a step is never shown by another."""
    return f"preview-{step}.{attempt}.jpg"


def is_preview(name: str, step: int) -> bool:
    """Whether this is the file of a preview after so many steps, of any attempt."""
    return name.startswith(f"preview-{step}.")


def job_urls(job_id: str) -> JobUrls:
    """Where to go from a job: paths, so that they hold behind any proxy."""
    base = f"/jobs/{job_id}"
    return JobUrls(self=base, cancel=f"{base}/cancel", events=f"{base}/events", content=f"{base}/content")


def to_wire(row: JobRow, queue_position: int | None) -> Job:
    """The wire's view of a row; `queue_position` is known only to the store."""
    error = None
    if row.error_code is not None:
        error = JobError(code=row.error_code, message=row.error_message or "")
    return Job(
        id=row.id,
        task=row.task,
        status=row.status,
        phase=row.phase,
        progress=row.progress,
        step=row.step,
        total_steps=row.total_steps,
        queue_position=queue_position,
        eta_s=row.eta_s,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        expires_at=row.expires_at,
        model=row.model,
        model_version=row.model_version,
        seed=row.seed,
        params=row.params,
        metadata=row.labels,
        timings=row.timings,
        cancelled_at_step=row.cancelled_at_step,
        engine=None if row.engine is None else JobEngine.model_validate(row.engine),
        output=None if row.output is None else JobOutput.model_validate(row.output),
        error=error,
        urls=job_urls(row.id),
    )

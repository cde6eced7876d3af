"""A job's clip made longer: another job, of the same settings, seed and pictures, and with more frames.

So its clip begins as the other's did (bit for bit in deterministic mode), and it is followed, cancelled and replayed as
any job is. The beginning is made again: an mp4's frames are no longer those that were encoded.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from stillmotion.types import Job

from model.errors import InvalidRequest
from model.tasks import TASKS
from serving.background import run_in_thread
from serving.gateway.errors import first_problem
from serving.gateway.openai_request import Seconds, positive_seconds, read_fields
from serving.gateway.openai_schema import PROMPT_KEY
from serving.gateway.services import Services
from serving.gateway.submit import JobRequest, submit
from serving.interpolation.plan import StageWishes
from serving.jobs.errors import Conflict
from serving.jobs.records import input_names, params_from_json
from serving.jobs.reuse import Origin
from serving.keys import Caller

EXTENDS_KEY: Final = "extends"
"""Under which label an extending job names the one that it goes on from."""


class ExtensionForm(BaseModel):
    """How much longer: `seconds` more, or `num_frames` in all."""

    model_config = ConfigDict(extra="forbid")

    seconds: Seconds | None = Field(None, description="how much longer the clip shall be; text or number")
    num_frames: int | None = Field(None, ge=2, le=1000, description="of the whole clip, before interpolation")
    prompt: str | None = Field(None, max_length=32_000, description="recorded; a clip goes on from its last frame")


async def read_extension(request: Request) -> tuple[ExtensionForm, str | None]:
    """The body, and the video that it names (`video` with its id, as OpenAI's client sends it), if it does.

    Raises:
        Problem: 415 for another content type, 400 for a body that cannot be parsed.
        InvalidRequest: a field is unknown or out of range, or not one of the two lengths is given.
    """
    values = await read_fields(request)
    video = values.pop("video", None)
    video_id = values.pop("video[id]", video.get("id") if isinstance(video, dict) else video)
    if video_id is not None and not isinstance(video_id, str):
        raise InvalidRequest("video must be an object with the id of a video of this service", param="video")
    try:
        form = ExtensionForm.model_validate({name: value for name, value in values.items() if value not in (None, "")})
    except ValidationError as error:
        raise first_problem(error, "an extension", ExtensionForm.model_fields) from error
    if (form.seconds is None) == (form.num_frames is None):
        raise InvalidRequest("send seconds or num_frames, one of them", code="missing_field", param="seconds")
    return form, video_id


async def find_job(services: Services, caller: Caller, job_id: str) -> Job:
    """The job that is to be extended. Raises JobNotFound where the caller has none of that id."""
    return await run_in_thread(services.store.get, job_id, caller.owner)


async def extend(
    services: Services, caller: Caller, job_id: str, form: ExtensionForm, idempotency_key: str | None
) -> tuple[Job, Origin]:
    """Store the job that makes another one's clip longer.

    Returns:
        The job, and whether it is new or was made before by the idempotency key.

    Raises:
        JobNotFound: there is no such job of the caller's.
        Conflict: its checkpoint was replaced since, or its pictures are gone.
        InvalidRequest, QueueFull, QuotaFull, StorageFull: as `submit`.
    """
    services.check_accepting()
    job = await find_job(services, caller, job_id)
    request = await run_in_thread(_request, services, job, form)
    return await submit(services, caller, request, idempotency_key)


def _request(services: Services, job: Job, form: ExtensionForm) -> JobRequest:
    try:
        params, stages = params_from_json(job.task, job.params)
    except (InvalidRequest, KeyError, TypeError) as error:
        raise Conflict(f"job {job.id} cannot be read: another version stored it", code="job_unreadable") from error
    served = services.model(job.model, job.task)
    if served.version != job.model_version:
        raise Conflict(
            f"{job.model} has version {served.version} now, and the clip was made by {job.model_version}: it would "
            "begin as another clip; generate it anew with more num_frames",
            code="other_version",
        )
    names = input_names(len(TASKS[job.task].pictures))
    try:
        pictures = tuple(services.artifacts.read(job.id, name) for name in names)
    except FileNotFoundError as error:
        raise Conflict(f"the picture of job {job.id} is gone", code="artifact_lost") from error
    frames = form.num_frames
    if frames is None:
        frames = stages.frames_to_interpolate(params) + round(positive_seconds(form.seconds or "") * params.fps)
    wishes: dict[str, Any] = {"frames": frames}
    if stages.extend is not None:
        wishes["extender"] = stages.extend.model
    if stages.interpolate is not None:
        wishes["interpolate"] = stages.interpolate.model
    if stages.upscale is not None:
        wishes |= {"upscale": stages.upscale.factor, "upscaler": stages.upscale.network}
    labels = {**job.metadata, EXTENDS_KEY: job.id}
    if form.prompt is not None:
        labels[PROMPT_KEY] = form.prompt[:2000]
    return JobRequest(
        task=job.task,
        model=job.model,
        settings={name: value for name, value in asdict(params).items() if value is not None},
        pictures=pictures,
        body={EXTENDS_KEY: job.id, **form.model_dump(mode="json")},
        output_format=job.params["output_format"],
        metadata=labels,
        stages=StageWishes(**wishes),
    )

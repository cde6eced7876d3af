"""Jobs after their submission: look, list, cancel, delete."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from stillmotion.types import Job, JobList, JobStatus

from serving.background import run_in_thread
from serving.gateway.auth import CallerDep, IdempotencyKey, repeat_of
from serving.gateway.openapi import error_responses
from serving.gateway.services import ServicesDep
from serving.jobs.dispatcher import QUEUE_TOPIC

router = APIRouter(prefix="/jobs", tags=["jobs"])


class JobQuery(BaseModel):
    """Which jobs to list."""

    model_config = ConfigDict(extra="forbid")

    status: JobStatus | None = Field(None, description="only jobs with this status")
    after: str | None = Field(None, description="begin behind this job: the `last_id` of the page before")
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = Field("desc", description="by arrival; desc: the newest first")


@router.get("", responses=error_responses(404))
async def list_jobs(services: ServicesDep, caller: CallerDep, query: Annotated[JobQuery, Query()]) -> JobList:
    """A page of jobs."""
    return await run_in_thread(services.store.page, query.status, query.after, query.limit, query.order, caller.owner)


@router.get("/{job_id}", responses=error_responses(404))
async def get_job(job_id: str, services: ServicesDep, caller: CallerDep) -> Job:
    """A job as it is now."""
    return await run_in_thread(services.store.get, job_id, caller.owner)


@router.post("/{job_id}/cancel", responses=error_responses(404, 409))
async def cancel_job(job_id: str, services: ServicesDep, caller: CallerDep, key: IdempotencyKey = None) -> Job:
    """Stop a job: at once if it waits, at the next step boundary if it runs (it is `in_progress` until then).

    A job that has ended already is answered as it is.
    """
    job = await run_in_thread(services.store.cancel, job_id, caller.owner, repeat_of(caller, key, {"cancel": job_id}))
    services.dispatcher.cancel(job_id)
    services.notifier.notify(job_id)
    return job


@router.delete("/{job_id}", status_code=204, responses=error_responses(404, 409))
async def delete_job(job_id: str, services: ServicesDep, caller: CallerDep) -> None:
    """Remove a job, its events and its files. A running job must be cancelled first."""
    await run_in_thread(services.store.delete, job_id, caller.owner)
    # The rows go first: files without a job are removed at the next start, a job without its files never heals.
    await run_in_thread(services.artifacts.remove, job_id)
    services.notifier.notify(job_id)
    services.notifier.notify(QUEUE_TOPIC)

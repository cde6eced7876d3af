"""A job's events as they happen (server-sent events), and again from any point."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header
from pydantic import BeforeValidator
from sse_starlette import EventSourceResponse, ServerSentEvent
from stillmotion.types import JobEvent

from serving.background import run_in_thread
from serving.gateway.auth import CallerDep
from serving.gateway.openapi import error_responses
from serving.gateway.services import Services, ServicesDep
from serving.jobs.errors import Conflict, JobNotFound
from serving.jobs.notifier import wait_notified
from serving.jobs.records import is_preview

router = APIRouter(prefix="/jobs", tags=["jobs"])
_LOOK_AGAIN_S = 15.0
"""Seconds; the notifier wakes the stream long before, also for what other servers do."""
_PING_S = 15
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events: `id` counts up from 1, `event` is its kind, `data` a JobEvent as JSON. The stream "
        "ends with the event of the job's last status.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get("/{job_id}/events", response_class=EventSourceResponse, responses={**_STREAM, **error_responses(404)})
async def stream_events(
    job_id: str,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: Annotated[
        int,
        BeforeValidator(lambda value: value or 0),  # an empty one means: none yet
        Header(alias="Last-Event-ID", ge=0, le=2**63 - 1, description="replay the events after this one"),
    ] = 0,
) -> EventSourceResponse:
    """Every event of the job: those that happened at once, the others as they happen."""
    await run_in_thread(services.store.get, job_id, caller.owner)
    return EventSourceResponse(_events(services, caller.owner, job_id, last_event_id), ping=_PING_S, sep="\n")


async def _events(services: Services, owner: str, job_id: str, last: int) -> AsyncIterator[ServerSentEvent]:
    with services.notifier.subscribe(job_id) as notified:
        while True:
            notified.clear()
            try:
                news, ended = await run_in_thread(services.store.events_after, job_id, last, owner)
            except JobNotFound:  # deleted while it was followed
                return
            for event in await run_in_thread(_with_picture, services, owner, job_id, news):
                last = event.id
                yield _message(event)
            if ended:
                return
            await wait_notified(notified, _LOOK_AGAIN_S)


def _with_picture(services: Services, owner: str, job_id: str, news: list[JobEvent]) -> list[JobEvent]:
    """The same events, the newest preview's with its JPEG, unless a newer one has taken its place on the disk."""
    last = max((number for number, event in enumerate(news) if event.preview is not None), default=None)
    if last is None or (preview := news[last].preview) is None:
        return news
    try:
        file = services.store.file(job_id, "preview", owner)
        if not is_preview(file.name, preview.step):
            return news
        data = base64.b64encode(services.artifacts.read(job_id, file.name)).decode()
    except (Conflict, JobNotFound, FileNotFoundError):
        return news
    with_data = news[last].model_copy(update={"preview": preview.model_copy(update={"data": data})})
    return [*news[:last], with_data, *news[last + 1 :]]


def _message(event: JobEvent) -> ServerSentEvent:
    return ServerSentEvent(id=str(event.id), event=event.event, data=event.model_dump_json())

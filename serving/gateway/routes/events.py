"""A job's events as they happen (server-sent events), and again from any point."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header
from sse_starlette import EventSourceResponse, ServerSentEvent
from stillmotion.types import JobEvent

from serving.gateway.auth import Who
from serving.gateway.documented import errors
from serving.gateway.services import Parts, Services
from serving.jobs.bell import wait_heard
from serving.jobs.errors import JobNotFound
from serving.jobs.threads import in_thread

router = APIRouter(prefix="/jobs", tags=["jobs"])
_LOOK_AGAIN_S = 15.0
"""Seconds; the bell rings long before, also for what other servers do."""
_PING_S = 15
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events: `id` counts up from 1, `event` is its kind, `data` a JobEvent as JSON. The stream "
        "ends with the event of the job's last status.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get("/{job_id}/events", response_class=EventSourceResponse, responses={**_STREAM, **errors(404)})
async def stream_events(
    job_id: str,
    parts: Parts,
    caller: Who,
    last_event_id: Annotated[
        int, Header(alias="Last-Event-ID", ge=0, description="replay the events after this one")
    ] = 0,
) -> EventSourceResponse:
    """Every event of the job: those that happened at once, the others as they happen."""
    await in_thread(parts.store.get, job_id, caller.owner)
    return EventSourceResponse(_events(parts, caller.owner, job_id, last_event_id), ping=_PING_S, sep="\n")


async def _events(parts: Services, owner: str, job_id: str, last: int) -> AsyncIterator[ServerSentEvent]:
    with parts.bell.listen(job_id) as heard:
        while True:
            heard.clear()
            try:
                news, ended = await in_thread(parts.store.events_after, job_id, last, owner)
            except JobNotFound:  # deleted while it was followed
                return
            for event in news:
                last = event.id
                yield _message(event)
            if ended:
                return
            await wait_heard(heard, _LOOK_AGAIN_S)


def _message(event: JobEvent) -> ServerSentEvent:
    return ServerSentEvent(id=str(event.id), event=event.event, data=event.model_dump_json())

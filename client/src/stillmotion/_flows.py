"""What the client does, without doing it: each operation is a generator of commands, run by either driver.

A flow yields a `Command`, gets its result back (or the httpx2 error it met, raised at that place), and returns the
operation's result. So retries, polling, reconnecting and resuming are written once, for `Client` and `AsyncClient`
alike, and are tested without a network or a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from stillmotion import _calls, errors
from stillmotion._calls import Call
from stillmotion._retry import RETRIED_STATUSES, RetryPolicy
from stillmotion.types import Job, JobList, JobStatus

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Send:
    """Make the call. Result: the `httpx2.Response`, its body read unless `stream` is set and its status below 400."""

    call: Call
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """Result: the next bytes of the response being streamed, or None at its end."""


@dataclass(frozen=True, slots=True)
class Close:
    """Let go of the response being streamed."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand a value to the caller before the flow is over."""

    value: Any


Command = Send | Read | Close | Sleep | Emit
Flow = Generator[Command, Any, T]

_NOT_RETRIED = (
    httpx2.UnsupportedProtocol,
    httpx2.LocalProtocolError,
    httpx2.DecodingError,
    httpx2.TooManyRedirects,
)


@dataclass(frozen=True, slots=True)
class Context:
    """What every flow needs to know.

    Args:
        address: the service's base URL, for messages.
        retry: when to try again.
        clock: seconds, monotonic.
    """

    address: str
    retry: RetryPolicy
    clock: Callable[[], float]


def send(context: Context, call: Call, *, stream: bool = False) -> Flow[httpx2.Response]:
    """Make a call, again and again as the policy allows.

    Raises:
        APIError: the service's last answer was an error.
        APIConnectionError: the last try got no answer.
    """
    for attempt in count():
        try:
            response: httpx2.Response = yield Send(call, stream)
        except httpx2.RequestError as error:
            failure: errors.StillmotionError = errors.from_transport(error, context.address)
            failure.__cause__ = error
            wait = None if isinstance(error, _NOT_RETRIED) else context.retry.delay(attempt)
        else:
            if response.status_code < 300:
                return response
            if response.status_code < 400:
                raise _unexpected(context, f"a redirect to {response.headers.get('location', 'nowhere')}", response)
            if attempt and call.method == "DELETE" and response.status_code == 404:
                return response  # the try before got through, and only its answer was lost
            failure = errors.from_response(response)
            retried = response.status_code in RETRIED_STATUSES
            wait = context.retry.delay(attempt, failure.retry_after) if retried else None
        if wait is None:
            raise failure
        yield Sleep(wait)
    raise AssertionError("unreachable: count() does not end")


def ask(context: Context, call: Call, kind: type[M]) -> Flow[M]:
    """Make a call and read its answer as `kind`."""
    response = yield from send(context, call)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise _unexpected(context, f"an answer that is no {kind.__name__}", response) from error


def _unexpected(context: Context, what: str, response: httpx2.Response) -> errors.UnexpectedAnswer:
    return errors.UnexpectedAnswer(
        f"{context.address} gave {what}; is it a Stillmotion service?",
        status=response.status_code,
        code="unexpected_answer",
        request_id=response.headers.get("x-request-id"),
    )


def delete(context: Context, job_id: str) -> Flow[None]:
    """Remove a job and its files."""
    yield from send(context, _calls.delete_job(job_id))


def poll(context: Context, job_id: str, timeout: float | None, interval: float | None) -> Flow[Job]:
    """Ask for the job's state until it has ended; the wait grows from 0.2 s to 2 s unless `interval` fixes it.

    Raises:
        JobFailed, JobCancelled, JobExpired: it ended without a video.
        JobTimeout: it did not end in `timeout` seconds.
    """
    start, wait = context.clock(), interval if interval is not None else 0.2
    while True:
        job: Job = yield from ask(context, _calls.get_job(job_id), Job)
        if job.is_terminal:
            return errors.completed(job)
        if timeout is not None:
            left = timeout - (context.clock() - start)
            if left <= 0:
                raise errors.JobTimeout(job, timeout)
            wait = min(wait, left)
        yield Sleep(wait)
        wait = interval if interval is not None else min(2.0, wait * 1.5)


def generated(context: Context, call: Call, wait: bool, timeout: float | None, interval: float | None) -> Flow[Job]:
    """Submit, and poll if that is wanted."""
    if wait:
        return (yield from generate(context, call, timeout, interval))
    return (yield from ask(context, call, Job))


def generate(context: Context, call: Call, timeout: float | None, interval: float | None) -> Flow[Job]:
    """Submit, then poll."""
    job: Job = yield from ask(context, call, Job)
    if job.is_terminal:
        return errors.completed(job)
    return (yield from poll(context, job.id, timeout, interval))


def list_jobs(context: Context, status: JobStatus | None, order: str, page_size: int) -> Flow[None]:
    """Emit every job, page after page."""
    after: str | None = None
    while True:
        page: JobList = yield from ask(context, _calls.list_jobs(status, order, page_size, after), JobList)
        for job in page.data:
            yield Emit(job)
        if not page.has_more or not page.data:
            return
        after = page.last_id or page.data[-1].id

"""The flows that read an answer while it arrives: a job's events, and its result."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx2
from pydantic import ValidationError

from stillmotion import _calls, errors
from stillmotion._flows import Close, Context, Emit, Flow, Read, Sleep, ask, send
from stillmotion._partfile import PartFile
from stillmotion._sse import EventParser, Message
from stillmotion.types import Job, JobEvent, Variant


def events(context: Context, job_id: str, last_id: int = 0) -> Flow[None]:
    """Emit every event of a job, once and in order, until it has ended; a broken stream is taken up where it broke.

    Raises:
        APIError: the service refuses.
        APIConnectionError: the stream broke more often in a row than the policy retries.
        UnexpectedAnswer: what came is no event of this API.
    """
    failures = 0
    while True:
        parser, cause = EventParser(), "it ended before the job did"
        yield from send(context, _calls.job_events(job_id, last_id), stream=True)
        try:
            while (chunk := (yield Read())) is not None:
                for event in map(_job_event, parser.feed(chunk)):
                    if event.id <= last_id:
                        continue
                    last_id, failures = event.id, 0
                    yield Emit(event)
                    if event.job.is_terminal:
                        return
        except httpx2.RequestError as error:
            cause = str(error) or type(error).__name__
        yield Close()
        wait = context.retry.delay(failures)
        if wait is None:
            raise errors.APIConnectionError(f"the events of job {job_id} broke off: {cause}", code="stream_broken")
        failures += 1
        yield Sleep(wait if parser.retry_s is None else parser.retry_s)


def _job_event(message: Message) -> JobEvent:
    try:
        return JobEvent.model_validate_json(message.data)
    except ValidationError as error:
        raise errors.UnexpectedAnswer(
            f"the stream sent a {message.event!r} event that is no JobEvent", code="unexpected_answer"
        ) from error


def download(context: Context, job: Job | str, path: Path, variant: Variant) -> Flow[Path]:
    """Download into `path`, which appears only when it is whole and right.

    A broken transfer goes on where it broke. The video's SHA-256 is compared with the job's; where they differ it is
    fetched once more from the start.

    Raises:
        JobFailed, JobCancelled, JobExpired: there is no result.
        APIError: the service refuses; Conflict while the job still runs.
        APIConnectionError: the transfer broke more often in a row than the policy retries.
        ChecksumMismatch: the bytes were wrong twice.
        OSError: the file cannot be written.
    """
    if variant == "preview":
        with PartFile(path) as part:
            part.write((yield from content(context, job, variant)))
            return part.publish()
    current = yield from _finished(context, job)
    with PartFile(path) as part:
        for is_last in (False, True):
            yield from _fetch(context, current.id, variant, part)
            expected = current.output.sha256 if current.output and variant == "video" else part.sha256
            if part.sha256 == expected:
                return part.publish()
            if is_last:
                raise errors.ChecksumMismatch(f"the {variant} of job {current.id}", expected, part.sha256)
            part.restart()
    raise AssertionError("unreachable: the loop returns or raises")


def content(context: Context, job: Job | str, variant: Variant) -> Flow[bytes]:
    """A job's result, in memory. Raises as `download`, but reads once only."""
    if variant == "preview":
        job_id = job if isinstance(job, str) else job.id
        response = yield from send(context, _calls.job_content(job_id, variant))
        return response.content
    current = yield from _finished(context, job)
    response = yield from send(context, _calls.job_content(current.id, variant))
    data = response.content
    actual = hashlib.sha256(data).hexdigest()
    if variant == "video" and current.output and current.output.sha256 != actual:
        raise errors.ChecksumMismatch(f"the video of job {current.id}", current.output.sha256, actual)
    return data


def _finished(context: Context, job: Job | str) -> Flow[Job]:
    """The job's latest state, asked for where the one at hand is not final; raises where there is no result."""
    if isinstance(job, Job) and job.is_terminal:
        return errors.completed(job)
    job_id = job if isinstance(job, str) else job.id
    return errors.completed((yield from ask(context, _calls.get_job(job_id), Job)))


def _fetch(context: Context, job_id: str, variant: Variant, part: PartFile) -> Flow[None]:
    """Fill `part`, however often the transfer breaks, as long as each try brings something."""
    failures = 0
    while True:
        start = part.size
        try:
            response = yield from send(context, _calls.job_content(job_id, variant, start), stream=True)
        except errors.APIError as error:
            if error.status != 416 or not start:
                raise
            part.restart()  # shorter than what we have: it is another file now
            continue
        if start and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
            part.restart()  # the server sends it whole
        try:
            while (chunk := (yield Read())) is not None:
                part.write(chunk)
                failures = 0
            return
        except httpx2.RequestError as error:
            cause = errors.from_transport(error, context.address)
            cause.__cause__ = error
        yield Close()
        wait = context.retry.delay(failures)
        if wait is None:
            raise cause
        failures += 1
        yield Sleep(wait)

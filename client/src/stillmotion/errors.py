"""The error tree: every exception this SDK raises on purpose, drawn in one place.

    StillmotionError
    |-- APIError                        the service answered with an error
    |   |-- BadRequest            400
    |   |-- Unauthorized          401   no key, or a wrong one
    |   |-- Forbidden             403   a key without the right
    |   |-- NotFound              404
    |   |-- Conflict              409   content not ready, or an idempotency key used for something else
    |   |-- TooLarge              413
    |   |-- UnsupportedMediaType  415
    |   |-- Unprocessable         422   a field is out of range; `param` names it
    |   |-- RateLimited           429   `retry_after` seconds
    |   `-- ServerError           5xx
    |       `-- ServiceUnavailable 503  `retry_after` seconds
    |-- APIConnectionError              no answer came
    |   `-- APITimeoutError (TimeoutError)
    |-- UnexpectedAnswer                an answer that is not of this API: a proxy's page, another service
    |-- JobNotCompleted                 the job ended without a video; `job` is its last state
    |   |-- JobFailed
    |   |-- JobCancelled
    |   `-- JobExpired
    |-- JobTimeout (TimeoutError)       the job did not end in the time given; it goes on, `job` is its last state
    |-- BatchTimeout (TimeoutError)     the batch's rows did not all end in the time given; `batch` is its last state
    `-- ChecksumMismatch                the bytes downloaded are not those the service made

Arguments that cannot be sent at all (an image that is no image) raise the built-in TypeError, ValueError or OSError.
"""

from __future__ import annotations

import email.utils
import time
from typing import ClassVar

import httpx2
from pydantic import ValidationError

from stillmotion.types import Batch, ErrorBody, ErrorResponse, Job


class StillmotionError(Exception):
    """Base of every error of this SDK.

    Args:
        message: what went wrong, for a person.
        status: the HTTP status, where an answer came.
        code: stable machine-readable identifier.
        param: the request field at fault, if one is.
        request_id: what the service calls the request in its logs.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id


class APIError(StillmotionError):
    """The service answered with an error. `retry_after`: seconds it asks to wait, where it says so."""

    retry_after: float | None = None


class BadRequest(APIError):
    """400: the request is malformed."""


class Unauthorized(APIError):
    """401: no key, or a wrong one."""


class Forbidden(APIError):
    """403: the key may not do this."""


class NotFound(APIError):
    """404: no such job, model or route."""


class Conflict(APIError):
    """409: the content is not ready, or the idempotency key was used for another request."""


class TooLarge(APIError):
    """413: the request is beyond the size limit."""


class UnsupportedMediaType(APIError):
    """415: the picture or body is of a type that is not accepted."""


class Unprocessable(APIError):
    """422: a field's value is not acceptable; `param` names it."""


class RateLimited(APIError):
    """429: too many requests, or the queue is full; `retry_after` says when to come back."""


class ServerError(APIError):
    """5xx: the service failed."""


class ServiceUnavailable(ServerError):
    """503: the service is not ready; `retry_after` says when to come back."""


class APIConnectionError(StillmotionError):
    """No answer came: the address is wrong, the service is down, or the connection broke."""


class APITimeoutError(APIConnectionError, TimeoutError):
    """No answer came in time."""


class UnexpectedAnswer(StillmotionError):
    """An answer that is not of this API."""


class JobNotCompleted(StillmotionError):
    """The job ended without a video; `job` is its last state."""

    verb: ClassVar[str] = "did not complete"

    def __init__(self, job: Job) -> None:
        reason = f": {job.error.message}" if job.error else ""
        super().__init__(f"job {job.id} {self.verb}{reason}", code=job.error.code if job.error else job.status)
        self.job = job


class JobFailed(JobNotCompleted):
    """The job failed while it ran."""

    verb = "failed"


class JobCancelled(JobNotCompleted):
    """The job was cancelled."""

    verb = "was cancelled"


class JobExpired(JobNotCompleted):
    """The job, or its result, was kept as long as the service keeps them."""

    verb = "expired"


class JobTimeout(StillmotionError, TimeoutError):
    """The job did not end in the time given. It goes on; `job` is its last known state."""

    def __init__(self, job: Job, seconds: float) -> None:
        super().__init__(f"job {job.id} is {job.status} ({job.progress}%) after {seconds:g} s", code="job_timeout")
        self.job = job


class BatchTimeout(StillmotionError, TimeoutError):
    """Not every row of the batch ended in the time given. It goes on; `batch` is its last known state."""

    def __init__(self, batch: Batch, seconds: float) -> None:
        left = batch.counts.queued + batch.counts.in_progress
        super().__init__(f"{left} rows of batch {batch.id} have not ended after {seconds:g} s", code="batch_timeout")
        self.batch = batch


class ChecksumMismatch(StillmotionError):
    """The bytes downloaded are not those the service made."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(f"{what}: expected SHA-256 {expected}, got {actual}", code="checksum_mismatch")
        self.expected = expected
        self.actual = actual


_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedMediaType,
    422: Unprocessable,
    429: RateLimited,
    503: ServiceUnavailable,
}
_BY_JOB_STATUS: dict[str, type[JobNotCompleted]] = {
    "failed": JobFailed,
    "cancelled": JobCancelled,
    "expired": JobExpired,
}


def from_response(response: httpx2.Response) -> APIError:
    """The error that an answer from 400 up means; its body must have been read."""
    kind = _BY_STATUS.get(response.status_code, ServerError if response.status_code >= 500 else APIError)
    try:
        body = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:  # not our service's shape: a proxy or load balancer between
        text = " ".join(response.text.split())[:200]
        body = ErrorBody(type="unknown", code=f"http_{response.status_code}", message=text or response.reason_phrase)
    error = kind(
        f"{body.message} (HTTP {response.status_code}, {body.code})",
        status=response.status_code,
        code=body.code,
        param=body.param,
        request_id=body.request_id or response.headers.get("x-request-id"),
    )
    error.message = body.message
    error.retry_after = retry_after(response.headers.get("retry-after"))
    return error


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date (RFC 9110, 10.2.3). None: it says nothing."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())


def from_transport(error: httpx2.RequestError, address: str) -> APIConnectionError:
    """The error that a failure to get an answer means."""
    if isinstance(error, httpx2.TimeoutException):
        return APITimeoutError(f"{address} did not answer in time ({type(error).__name__})", code="timeout")
    return APIConnectionError(f"cannot reach {address}: {error or type(error).__name__}", code="connection_failed")


def completed(job: Job) -> Job:
    """The job itself, if it ended with a video.

    Raises:
        JobFailed, JobCancelled, JobExpired: it ended otherwise.
    """
    kind = _BY_JOB_STATUS.get(job.status)
    if kind is not None:
        raise kind(job)
    return job

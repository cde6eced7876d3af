"""Every status becomes its own exception, with all the service said."""

from __future__ import annotations

import email.utils
import time

import httpx2
import pytest
import stillmotion
from stillmotion import errors
from stillmotion.types import Job

from tests.unit.client.support import error_json, job_json

KINDS = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.APIError,
    409: errors.Conflict,
    413: errors.TooLarge,
    415: errors.UnsupportedMediaType,
    422: errors.Unprocessable,
    429: errors.RateLimited,
    500: errors.ServerError,
    502: errors.ServerError,
    503: errors.ServiceUnavailable,
}


@pytest.mark.parametrize(("status", "kind"), KINDS.items())
def test_each_status_has_its_class_and_carries_everything(status: int, kind: type[errors.APIError]) -> None:
    error = errors.from_response(httpx2.Response(status, json=error_json(), headers={"Retry-After": "12"}))
    assert type(error) is kind
    assert (error.status, error.code, error.message) == (status, "out_of_range", "fps is wrong")
    assert (error.param, error.request_id, error.retry_after) == ("fps", "req_9", 12.0)
    assert str(status) in str(error)
    assert "fps is wrong" in str(error)


def test_a_proxys_page_is_told_as_it_is() -> None:
    page = httpx2.Response(502, text="<html>Bad\n gateway</html>", headers={"X-Request-ID": "abc"})
    error = errors.from_response(page)
    assert (error.code, error.message, error.request_id) == ("http_502", "<html>Bad gateway</html>", "abc")
    assert errors.from_response(httpx2.Response(504)).message == "Gateway Timeout"


def test_retry_after_is_seconds_or_a_date_or_nothing() -> None:
    assert errors.retry_after("0") == 0
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert errors.retry_after(later) == pytest.approx(30, abs=2)
    assert errors.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert errors.retry_after("soon") is None
    assert errors.retry_after(None) is None


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (httpx2.ReadTimeout("slow"), errors.APITimeoutError),
        (httpx2.ConnectTimeout("slow"), errors.APITimeoutError),
        (httpx2.ConnectError("refused"), errors.APIConnectionError),
        (httpx2.RemoteProtocolError("cut"), errors.APIConnectionError),
    ],
)
def test_no_answer_names_the_address(raised: httpx2.RequestError, kind: type[Exception]) -> None:
    error = errors.from_transport(raised, "http://service")
    assert type(error) is kind
    assert "http://service" in str(error)
    assert isinstance(error, TimeoutError) == (kind is errors.APITimeoutError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [("failed", errors.JobFailed), ("cancelled", errors.JobCancelled), ("expired", errors.JobExpired)],
)
def test_a_job_without_a_video_is_an_exception(status: str, kind: type[errors.JobNotCompleted]) -> None:
    reason = {"code": "out_of_memory", "message": "no room"} if status == "failed" else None
    job = Job.model_validate(job_json(status, error=reason))
    with pytest.raises(kind) as caught:
        errors.completed(job)
    assert caught.value.job is job
    assert caught.value.code == ("out_of_memory" if reason else status)
    assert ("no room" in str(caught.value)) == bool(reason)


def test_one_base_for_all_and_all_are_public() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    ours = [kind for kind in kinds if kind.__module__ == "stillmotion.errors"]
    assert len(ours) == 23
    for kind in ours:
        assert issubclass(kind, errors.StillmotionError)
        assert getattr(stillmotion, kind.__name__) is kind
        assert kind.__name__ in (errors.__doc__ or "")

"""Retries, polling, paging: the flows, driven without a network or a clock."""

from __future__ import annotations

import random

import httpx2
import pytest
from stillmotion import _calls, errors
from stillmotion._flows import ask, delete, generate, list_jobs, poll, send
from stillmotion.types import Job

from tests.unit.client.support import PNG, Clock, Script, context, drive, error_json, job_json


def ok(status: str = "completed", **changes: object) -> httpx2.Response:
    return httpx2.Response(200, json=job_json(status, **changes))


def refused(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json=error_json(), headers=headers)


@pytest.mark.parametrize(
    "failure",
    [refused(429), refused(502), refused(503), refused(504), httpx2.ConnectError("no"), httpx2.ReadTimeout("slow")],
    ids=repr,
)
def test_passing_failures_are_tried_again_with_one_idempotency_key(failure: httpx2.Response | Exception) -> None:
    clock, script = Clock(), Script(failure, failure, ok())
    call = _calls.image_to_video(PNG, {"seed": 7}, None)
    job, _ = drive(ask(context(clock), call, Job), script, clock)
    assert job.id == "job_1"
    keys = [request.headers["Idempotency-Key"] for request in script.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert 0.25 <= clock.sleeps[0] <= 0.5 <= clock.sleeps[1] <= 1.0


def test_two_submissions_have_two_keys_and_a_given_key_is_kept() -> None:
    first, second = (_calls.image_to_video(PNG, {}, None).headers["Idempotency-Key"] for _ in range(2))
    assert first != second
    assert _calls.image_to_video(PNG, {}, "mine").headers["Idempotency-Key"] == "mine"
    assert "Idempotency-Key" in _calls.cancel_job("a").headers


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 415, 422, 500, 501])
def test_lasting_failures_are_not_tried_again(status: int) -> None:
    clock, script = Clock(), Script(refused(status))
    with pytest.raises(errors.APIError) as caught:
        drive(send(context(clock), _calls.get_job("a")), script, clock)
    assert caught.value.status == status
    assert clock.sleeps == []


def test_retry_after_is_honoured_and_too_long_a_one_is_the_callers_to_decide() -> None:
    clock, script = Clock(), Script(refused(429, **{"Retry-After": "20"}), ok())
    drive(send(context(clock), _calls.get_job("a")), script, clock)
    assert 20 <= clock.sleeps[0] <= 21
    clock, script = Clock(), Script(refused(503, **{"Retry-After": "3600"}))
    with pytest.raises(errors.ServiceUnavailable) as caught:
        drive(send(context(clock), _calls.get_job("a")), script, clock)
    assert caught.value.retry_after == 3600
    assert clock.sleeps == []


def test_it_gives_up_after_the_last_retry_with_the_last_error() -> None:
    clock, script = Clock(), Script(refused(503), httpx2.ConnectError("no"), refused(429), ok())
    with pytest.raises(errors.RateLimited):
        drive(send(context(clock, max_retries=2), _calls.get_job("a")), script, clock)
    assert (len(script.requests), len(clock.sleeps)) == (3, 2)
    with pytest.raises(errors.APIConnectionError) as caught:
        drive(send(context(clock, max_retries=0), _calls.get_job("a")), Script(httpx2.ConnectError("no")), clock)
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)


def test_a_wrong_scheme_is_not_tried_again() -> None:
    clock = Clock()
    with pytest.raises(errors.APIConnectionError):
        drive(send(context(clock), _calls.get_job("a")), Script(httpx2.UnsupportedProtocol("ftp")), clock)
    assert clock.sleeps == []


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, text="<html>welcome</html>"),
        httpx2.Response(200, json={"id": 4}),
        httpx2.Response(302, headers={"location": "http://elsewhere"}),
    ],
)
def test_an_answer_of_another_service_is_told_apart(answer: httpx2.Response) -> None:
    clock = Clock()
    with pytest.raises(errors.UnexpectedAnswer, match="Stillmotion service"):
        drive(ask(context(clock), _calls.get_job("a"), Job), Script(answer), clock)


def test_a_delete_whose_answer_was_lost_has_succeeded() -> None:
    clock = Clock()
    drive(delete(context(clock), "a"), Script(httpx2.ReadError("cut"), refused(404)), clock)
    with pytest.raises(errors.NotFound):
        drive(delete(context(clock), "a"), Script(refused(404)), clock)


def test_polling_waits_longer_and_longer_up_to_two_seconds() -> None:
    clock = Clock()
    script = Script(*[ok("in_progress")] * 12, ok())
    job, _ = drive(poll(context(clock), "job_1", None, None), script, clock)
    assert job.status == "completed"
    assert clock.sleeps[0] == pytest.approx(0.2)
    assert clock.sleeps == sorted(clock.sleeps)
    assert clock.sleeps[-1] == 2.0
    clock = Clock()
    drive(poll(context(clock), "job_1", None, 0.75), Script(ok("queued"), ok("queued"), ok()), clock)
    assert clock.sleeps == [0.75, 0.75]


def test_polling_stops_on_time_with_the_last_state() -> None:
    clock = Clock()
    script = Script(*[ok("in_progress")] * 100)
    with pytest.raises(errors.JobTimeout) as caught:
        drive(poll(context(clock), "job_1", 10.0, None), script, clock)
    assert caught.value.job.status == "in_progress"
    assert clock.now - 1000 == pytest.approx(10)
    assert isinstance(caught.value, TimeoutError)


def test_generate_submits_once_and_waits() -> None:
    clock = Clock()
    script = Script(ok("queued"), ok("in_progress"), ok())
    job, _ = drive(generate(context(clock), _calls.image_to_video(PNG, {}, None), 60, None), script, clock)
    assert job.status == "completed"
    assert [request.method for request in script.requests] == ["POST", "GET", "GET"]
    with pytest.raises(errors.JobFailed):
        drive(generate(context(clock), _calls.image_to_video(PNG, {}, None), 60, None), Script(ok("failed")), clock)


def test_pages_follow_each_other_to_the_end() -> None:
    jobs = [job_json(job_id=f"job_{n}") for n in range(5)]
    pages = [
        httpx2.Response(200, json={"data": jobs[:2], "has_more": True, "last_id": "job_1"}),
        httpx2.Response(200, json={"data": jobs[2:4], "has_more": True}),
        httpx2.Response(200, json={"data": jobs[4:], "has_more": False, "last_id": "job_4"}),
    ]
    clock, script = Clock(), Script(*pages)
    _, got = drive(list_jobs(context(clock), "completed", "asc", 2), script, clock)
    assert [job.id for job in got] == [f"job_{n}" for n in range(5)]
    assert [request.url.params.get("after") for request in script.requests] == [None, "job_1", "job_3"]
    assert {request.url.params["status"] for request in script.requests} == {"completed"}


def test_job_ids_cannot_change_the_path() -> None:
    assert _calls.get_job("../models?x#y").path == "jobs/..%2Fmodels%3Fx%23y"
    for nothing in ("", ".", ".."):
        with pytest.raises(ValueError, match="job id"):
            _calls.get_job(nothing)


def test_settings_become_form_fields() -> None:
    call = _calls.image_to_video(PNG, {"seed": 7, "fps": None, "metadata": {"a": "b"}, "noise_aug_strength": 0.5}, None)
    assert call.form == {"seed": "7", "metadata": '{"a": "b"}', "noise_aug_strength": "0.5"}


def test_jitter_comes_from_the_policys_own_generator() -> None:
    runs = []
    for _ in range(2):
        clock, script = Clock(), Script(refused(503), refused(503), ok())
        drive(send(context(clock, rng=random.Random(3)), _calls.get_job("a")), script, clock)
        runs.append(clock.sleeps)
    assert runs[0] == runs[1]

"""Event streams that break, and downloads that break, are cut short or are wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx2
import pytest
from stillmotion import errors
from stillmotion._streaming import content, download, events
from stillmotion.types import Job

from tests.unit.client.support import (
    Broken,
    Clock,
    Script,
    context,
    drive,
    error_json,
    event_bytes,
    job_json,
    output_json,
)

DATA = bytes(range(256)) * 8
SHA = hashlib.sha256(DATA).hexdigest()


def done(sha256: str = SHA) -> Job:
    return Job.model_validate(job_json(output=output_json(sha256, len(DATA))))


def stream(*pieces: bytes, broken: bool = False) -> httpx2.Response:
    return httpx2.Response(200, stream=Broken(*pieces)) if broken else httpx2.Response(200, content=b"".join(pieces))


def part(start: int, *pieces: bytes, broken: bool = False) -> httpx2.Response:
    headers = {"content-range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}
    body = {"stream": Broken(*pieces)} if broken else {"content": b"".join(pieces)}
    return httpx2.Response(206, headers=headers, **body)  # type: ignore[arg-type]


def test_a_broken_stream_goes_on_where_it_broke() -> None:
    clock = Clock()
    script = Script(
        stream(event_bytes(1, "queued", "queued"), event_bytes(2)[:30], broken=True),
        stream(event_bytes(2), event_bytes(3)),  # ends too early
        stream(event_bytes(3), event_bytes(4, "completed", "completed")),  # repeats one
    )
    _, got = drive(events(context(clock), "job_1"), script, clock)
    assert [event.id for event in got] == [1, 2, 3, 4]
    assert got[-1].job.is_terminal
    assert [request.headers.get("Last-Event-ID") for request in script.requests] == [None, "1", "3"]
    assert len(clock.sleeps) == 2


def test_each_event_received_renews_the_patience() -> None:
    clock = Clock()
    cut = [stream(event_bytes(number), broken=True) for number in range(1, 8)]
    script = Script(*cut, stream(event_bytes(8, "failed", "failed")))
    _, got = drive(events(context(clock, max_retries=1), "job_1"), script, clock)
    assert [event.id for event in got] == list(range(1, 9))


def test_a_stream_that_brings_nothing_is_given_up() -> None:
    clock = Clock()
    with pytest.raises(errors.APIConnectionError, match="before the job did"):
        drive(events(context(clock, max_retries=2), "job_1"), Script(*[stream(b": ping\n\n")] * 3), clock)
    assert len(clock.sleeps) == 2


def test_the_servers_reconnection_time_is_kept() -> None:
    clock = Clock()
    script = Script(stream(b"retry: 3500\n\n"), stream(event_bytes(1, "completed", "completed")))
    drive(events(context(clock), "job_1"), script, clock)
    assert clock.sleeps == [3.5]


def test_a_stream_of_something_else_is_told() -> None:
    clock = Clock()
    with pytest.raises(errors.UnexpectedAnswer):
        drive(events(context(clock), "job_1"), Script(stream(b"data: hello\n\n")), clock)
    with pytest.raises(errors.NotFound):
        drive(events(context(clock), "job_1"), Script(httpx2.Response(404, json=error_json())), clock)


def test_a_download_is_whole_checked_and_leaves_nothing_else(tmp_path: Path) -> None:
    clock = Clock()
    path, _ = drive(download(context(clock), done(), tmp_path / "x.mp4", "video"), Script(stream(DATA)), clock)
    assert path.read_bytes() == DATA
    assert [file.name for file in tmp_path.iterdir()] == ["x.mp4"]


def test_a_broken_download_resumes(tmp_path: Path) -> None:
    clock = Clock()
    script = Script(
        stream(DATA[:500], DATA[500:900], broken=True), part(900, DATA[900:1000], broken=True), part(1000, DATA[1000:])
    )
    path, _ = drive(download(context(clock, max_retries=1), done(), tmp_path / "x.mp4", "video"), script, clock)
    assert path.read_bytes() == DATA
    assert [request.headers.get("Range") for request in script.requests] == [None, "bytes=900-", "bytes=1000-"]


@pytest.mark.parametrize("answer", [stream(DATA), part(0, DATA)], ids=["whole", "another range"])
def test_a_server_that_does_not_resume_is_read_anew(tmp_path: Path, answer: httpx2.Response) -> None:
    clock, script = Clock(), Script(stream(DATA[:500], broken=True), answer)
    path, _ = drive(download(context(clock), done(), tmp_path / "x.mp4", "video"), script, clock)
    assert path.read_bytes() == DATA


def test_a_range_that_is_gone_starts_over(tmp_path: Path) -> None:
    clock = Clock()
    script = Script(stream(DATA[:500], broken=True), httpx2.Response(416, json=error_json()), stream(DATA))
    path, _ = drive(download(context(clock), done(), tmp_path / "x.mp4", "video"), script, clock)
    assert path.read_bytes() == DATA
    assert script.requests[-1].headers.get("Range") is None


def test_wrong_bytes_are_fetched_once_more_and_then_refused(tmp_path: Path) -> None:
    clock, target = Clock(), tmp_path / "x.mp4"
    target.write_bytes(b"what was there before")
    with pytest.raises(errors.ChecksumMismatch) as caught:
        drive(download(context(clock), done(), target, "video"), Script(stream(DATA[:-1]), stream(DATA[1:])), clock)
    assert (caught.value.expected, caught.value.actual) == (SHA, hashlib.sha256(DATA[1:]).hexdigest())
    assert target.read_bytes() == b"what was there before"
    assert [file.name for file in tmp_path.iterdir()] == ["x.mp4"]
    path, _ = drive(download(context(clock), done(), target, "video"), Script(stream(DATA[:-1]), stream(DATA)), clock)
    assert path.read_bytes() == DATA


def test_a_download_that_never_gets_through_leaves_nothing(tmp_path: Path) -> None:
    clock = Clock()
    script = Script(stream(DATA[:9], broken=True), *[part(9, broken=True) for _ in range(5)])
    with pytest.raises(errors.APIConnectionError):
        drive(download(context(clock, max_retries=2), done(), tmp_path / "x.mp4", "video"), script, clock)
    assert list(tmp_path.iterdir()) == []


def test_other_variants_are_downloaded_without_the_videos_checksum(tmp_path: Path) -> None:
    clock, script = Clock(), Script(stream(b"{}"))
    path, _ = drive(download(context(clock), done(), tmp_path / "x.json", "manifest"), script, clock)
    assert path.read_bytes() == b"{}"
    assert script.requests[0].url.params["variant"] == "manifest"


def test_a_job_known_by_id_or_not_yet_done_is_asked_for_first(tmp_path: Path) -> None:
    clock = Clock()
    fresh = httpx2.Response(200, text=done().model_dump_json())
    drive(download(context(clock), "job_1", tmp_path / "x.mp4", "video"), Script(fresh, stream(DATA)), clock)
    running = Job.model_validate(job_json("in_progress"))
    still = httpx2.Response(200, json=job_json("in_progress"))
    not_ready = httpx2.Response(409, json=error_json("content_not_ready"))
    with pytest.raises(errors.Conflict):
        drive(download(context(clock), running, tmp_path / "y.mp4", "video"), Script(still, not_ready), clock)
    failed = Job.model_validate(job_json("failed"))
    with pytest.raises(errors.JobFailed):
        drive(download(context(clock), failed, tmp_path / "y.mp4", "video"), Script(), clock)
    assert [file.name for file in tmp_path.iterdir()] == ["x.mp4"]


def test_a_folder_that_is_not_there_is_the_callers_error(tmp_path: Path) -> None:
    clock = Clock()
    with pytest.raises(FileNotFoundError):
        drive(download(context(clock), done(), tmp_path / "no" / "x.mp4", "video"), Script(), clock)


def test_content_in_memory_is_checked_too() -> None:
    clock = Clock()
    data, _ = drive(content(context(clock), done(), "video"), Script(stream(DATA)), clock)
    assert data == DATA
    with pytest.raises(errors.ChecksumMismatch):
        drive(content(context(clock), done(), "video"), Script(stream(DATA[1:])), clock)

"""The service killed in the middle of its work: every job is completed, once, and is the video it would have been.

In deterministic mode on a tiny checkpoint: a job that went on from a checkpoint, on this server or another, has the
frames of a job that nothing happened to. The short form runs in `make test`, the long ones in `make test-full`.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import httpx2
import pytest
from stillmotion import Client

from tests.e2e import crash_support
from tests.e2e.crash_support import (
    Server,
    build_model,
    check_histories,
    draw_photo,
    kill_at_random,
    progress,
    serving,
    settings_of,
    undisturbed,
)

pytestmark = pytest.mark.timeout(900)  # seconds on a busy machine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_photo(tmp_path_factory.mktemp("photo") / "photo.jpg")


def survive(model: Path, photo: Path, folder: Path, *, jobs: int, kills: int, steps: int) -> None:
    """Kill one server on SQLite so often, and compare what it makes with what it makes undisturbed."""
    asked = settings_of(jobs, steps)
    expected = undisturbed(model, folder / "undisturbed", photo, asked)
    server = Server(model, folder, f"sqlite:///{folder}/jobs.db")
    with serving(server):
        server.submit(photo, asked)
        kill_at_random(server, server, kills, random.Random(jobs))
        made = server.until_all_ended()
        assert {job.seed: job.output.frames_sha256 for job in made if job.output is not None} == expected
        with Client(server.url) as client:
            for job in made:
                client.download_to(job, folder / "video.mp4")  # its bytes are those the job's record names
    assert check_histories(server.database_url, asked) > 0
    left = [path.name for path in (folder / "artifacts").rglob("checkpoint*")]
    assert left == []


@pytest.mark.slow
def test_three_kills_lose_nothing(model: Path, photo: Path, tmp_path: Path) -> None:
    survive(model, photo, tmp_path, jobs=4, kills=3, steps=12)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_twenty_kills_lose_none_of_forty_jobs(model: Path, photo: Path, tmp_path: Path) -> None:
    survive(model, photo, tmp_path, jobs=40, kills=20, steps=20)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_two_gateways_share_a_queue_and_one_is_killed(model: Path, photo: Path, tmp_path: Path, postgres: str) -> None:
    asked = settings_of(40, 20)
    expected = undisturbed(model, tmp_path / "undisturbed", photo, asked)
    lives, dies = (Server(model, tmp_path, postgres, name) for name in ("lives", "dies"))
    with serving(lives, dies):
        lives.submit(photo, asked)
        kill_at_random(dies, lives, 20, random.Random(1))
        made = lives.until_all_ended()
        assert {job.id: job for job in dies.jobs()} == {job.id: job for job in made}
    assert {job.seed: job.output.frames_sha256 for job in made if job.output is not None} == expected
    assert check_histories(postgres, asked) > 0


@pytest.mark.slow
def test_a_stop_refuses_new_work_and_ends_what_runs(model: Path, photo: Path, tmp_path: Path) -> None:
    asked = settings_of(2, 30)
    server = Server(model, tmp_path, f"sqlite:///{tmp_path}/jobs.db", arguments=("--grace", "120"))
    with serving(server):
        server.submit(photo, asked)
        while progress(server) < 0.05:
            time.sleep(crash_support.LOOK_S)
        server.signal(signal.SIGTERM)
        statuses = set()
        while True:
            try:
                answer = httpx2.post(f"{server.url}/generate/image-to-video", json={}, timeout=60)
            except httpx2.TransportError:  # it has ended
                break
            statuses.add(answer.status_code)
            if answer.status_code == 503:
                assert answer.json()["error"]["code"] == "stopping"
                assert int(answer.headers["retry-after"]) > 0
            time.sleep(crash_support.LOOK_S)
        assert server.wait() == 0
    assert 503 in statuses
    assert statuses <= {422, 503}  # 422, before the signal was seen: the body is empty
    assert check_histories(server.database_url, asked) == 0  # both ended within the grace time


@pytest.mark.full
def test_a_stop_without_grace_checkpoints_what_runs(model: Path, photo: Path, tmp_path: Path) -> None:
    asked = settings_of(2, 30)
    expected = undisturbed(model, tmp_path / "undisturbed", photo, asked)
    server = Server(model, tmp_path, f"sqlite:///{tmp_path}/jobs.db", arguments=("--grace", "0"))
    with serving(server):
        server.submit(photo, asked)
        while progress(server) < 0.2:
            time.sleep(crash_support.LOOK_S)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        server.start()
        made = server.until_all_ended()
    assert {job.seed: job.output.frames_sha256 for job in made if job.output is not None} == expected
    assert check_histories(server.database_url, asked) > 0

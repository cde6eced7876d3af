"""Gateway -> Triton, the real server out of the wheel: the same frames as in process, and none lost with a server.

The server stands in a process of its own and is talked to over gRPC. Tiny checkpoints with random weights on one thread
in deterministic mode, so that "equal" means the same bits. The order counts: the last test serves a new version.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model.catalog import ModelEntry
from model.interpolation import plan_interpolation
from model.tasks import TASKS
from serving.interpolation.local import generate_chained
from serving.triton import server as control
from serving.triton.channel import Channel
from serving.triton.server import NoTritonServer, TritonServer, fetch_server
from serving.triton.wire import pack_control
from tests.conftest import ROOT
from tests.e2e.crash_support import check_histories
from tests.integration.triton_support import (
    IN_PROCESS,
    Gateway,
    checkpoint,
    gateway,
    host,
    picture,
    pictures_of,
    steps_after_cancel,
    triton_server,
    undisturbed,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # seconds on a busy machine
STILL = "image-to-video"
ASKED: dict[str, dict[str, Any]] = {
    STILL: {},
    "text-to-video": {"prompt": "a red ball"},
    "frame-interpolation": {},
    "multi-view": {"elevation": 20.0},
}


@dataclass(frozen=True)
class Hosted:
    """A running server, its repository, and the checkpoints in it: image-to-video, others when a test names them."""

    server: TritonServer
    repository: Path
    entries: dict[str, ModelEntry]
    log: Path

    async def entry(self, task: str) -> ModelEntry:
        """The checkpoint of a task, loaded by the first test that names it: each takes a process of the server."""
        if task not in self.entries:
            self.entries[task] = checkpoint(self.repository.parent / "checkpoints", task)
            host(self.entries[task], self.repository)
            await control.load(self.url, task)
        return self.entries[task]

    @property
    def url(self) -> str:
        return self.server.ports.url


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """One server for the module."""
    try:
        fetch_server()
    except NoTritonServer as error:
        pytest.skip(f"no tritonserver: {error}")
    folder = tmp_path_factory.mktemp("triton")
    entry = checkpoint(folder / "checkpoints", STILL)
    host(entry, folder / "repository")
    with triton_server(folder / "repository", folder / "a.log", [STILL]) as server:
        yield Hosted(server, folder / "repository", {STILL: entry}, folder / "a.log")


@pytest.mark.parametrize("task", sorted(TASKS, key=lambda task: task != STILL))
async def test_every_task_gives_the_frames_it_gives_in_process(hosted: Hosted, task: str, tmp_path: Path) -> None:
    entry, asked = await hosted.entry(task), ASKED[task] | {"num_inference_steps": 3}
    async with gateway(tmp_path, hosted.url) as service:
        (job,) = await service.ended(await service.submit(entry, 11, **asked))
        assert job.output is not None, job.error
        manifest = await service.manifest(job)
    assert job.output.frames_sha256 == undisturbed(entry, 11, **asked)
    assert (manifest["model_version"], manifest["repository_version"]) == (entry.version, 1)
    assert manifest["deterministic"]


async def test_a_chain_gives_the_frames_it_gives_in_process(hosted: Hosted, tmp_path: Path) -> None:
    still, between = await hosted.entry(STILL), await hosted.entry("frame-interpolation")
    async with gateway(tmp_path, hosted.url) as service:
        job = await service.submit(still, 12, num_inference_steps=2, interpolate="true")
        told = [now async for _, now in service.events(job)]
    done, params = told[-1], still.resolve({"num_inference_steps": 2}, seed=12)
    chain = plan_interpolation(between, params)
    alone = generate_chained((still, between), params, pictures_of(still), chain, settings=(IN_PROCESS, IN_PROCESS))
    assert done.output is not None, done.error
    assert done.output.frames_sha256 == alone.completed.frames_sha256
    assert done.output.num_frames == len(alone.frames) == 4 * (still.num_frames[0] - 1) + 1
    assert {"denoise", "interpolate", "mux"} <= {now.phase for now in told}


async def test_step_events_arrive_as_the_steps_happen(hosted: Hosted, tmp_path: Path) -> None:
    steps = 12
    async with gateway(tmp_path, hosted.url) as service:
        job = await service.submit(hosted.entries[STILL], 1, num_inference_steps=steps)
        arrived = {now.step: time.monotonic() async for kind, now in service.events(job) if kind == "step"}
        (job,) = await service.ended(job)
    assert sorted(arrived) == list(range(1, steps + 1))
    denoise = job.timings["denoise"]
    # From the first step to the last eleven twelfths of the phase pass; sent all at once they would be no time apart.
    assert arrived[steps] - arrived[1] > 0.6 * denoise * (steps - 1) / steps
    gaps = [arrived[step + 1] - arrived[step] for step in range(1, steps)]
    assert max(gaps) < 0.6 * denoise


async def test_cancel_through_http_stops_the_steps_within_one(hosted: Hosted, tmp_path: Path) -> None:
    async with gateway(tmp_path, hosted.url) as service:
        job = await service.submit(hosted.entries[STILL], 2, num_inference_steps=200)
        async for kind, now in service.events(job):
            if kind == "step" and now.step == 3:
                await service.client.post(f"/jobs/{job.id}/cancel")
                break
        (job,) = await service.ended(job)
        made = await denoiser_calls(hosted.url)
        await asyncio.sleep(1.0)
        assert await denoiser_calls(hosted.url) == made
    assert job.status == "cancelled"
    assert steps_after_cancel(hosted.log, job.id) <= 1


async def denoiser_calls(url: str) -> int:
    """Of image-to-video in a server, so far."""
    (status,) = [one for one in await control.statuses(url) if one.entry["name"] == STILL]
    return int(status.stats["denoiser_calls"])


async def test_a_thousand_questions_leave_the_server_up(hosted: Hosted) -> None:
    """Cancels that crossed a stream's end crashed this server after some four hundred (its issue 7368)."""
    channel = Channel(hosted.url)
    try:
        for _ in range(1000):
            await channel.ask(STILL, 1, pack_control("status", "test"))
    finally:
        await channel.close()


async def test_a_caller_that_goes_away_frees_the_compute(hosted: Hosted, tmp_path: Path) -> None:
    async with gateway(tmp_path, hosted.url) as service:
        job = await service.submit(hosted.entries[STILL], 3, num_inference_steps=200)
        async for kind, now in service.events(job):
            if kind == "step" and now.step == 2:
                break
    # The gateway has stopped and closed its streams; nobody sent a cancel frame.
    until = time.monotonic() + 10
    while any(status.in_flight for status in await control.statuses(hosted.url)):
        assert time.monotonic() < until
        await asyncio.sleep(0.1)
    assert re.search(rf"job {job.id} after step \d+: cancelled", hosted.log.read_text())


def test_the_documented_load_through_tritonclient_alone(hosted: Hosted, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "triton.md").read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 20
    (tmp_path / "load.py").write_text(example)
    (tmp_path / "still.png").write_bytes(picture())
    command = [sys.executable, "load.py", hosted.url, STILL, "still.png", "3", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"3 videos in [\d.]+ s", done.stdout), done.stdout


async def survive(hosted: Hosted, folder: Path, jobs: int, steps: int) -> None:
    """Two servers behind one gateway; one is killed while every job runs."""
    entry = hosted.entries[STILL]
    with triton_server(hosted.repository, folder / "b.log", [STILL]) as other:
        async with gateway(folder / "gateway", hosted.url, other.ports.url) as service:
            sent = [await service.submit(entry, seed, num_inference_steps=steps) for seed in range(jobs)]
            victims = await under_way(service, other)
            assert other.process is not None
            os.kill(other.process.pid, signal.SIGKILL)
            ended = await service.ended(*sent)
        assert [job.status for job in ended] == ["completed"] * jobs
        assert check_histories(service.database_url, {job.seed: steps for job in ended}) >= victims
        assert {job.seed: job.output.frames_sha256 for job in ended if job.output is not None} == {
            seed: undisturbed(entry, seed, num_inference_steps=steps) for seed in range(jobs)
        }


async def under_way(service: Gateway, server: TritonServer) -> int:
    """How many jobs a server has, once each that runs anywhere has made some steps and is checkpointed."""
    while True:
        answer = await service.client.get("/jobs", params={"status": "in_progress", "limit": 100})
        running = answer.json()["data"]
        kept = {path.parent.name for path in service.artifacts.rglob("checkpoint.safetensors")}
        if len(running) > 1 and all(job["step"] > 1 and job["id"] in kept for job in running):
            (status,) = await control.statuses(server.ports.url)
            if status.in_flight:
                return status.in_flight
        await asyncio.sleep(0.05)


@pytest.mark.full
async def test_jobs_of_a_killed_server_go_on_at_another(hosted: Hosted, tmp_path: Path) -> None:
    await survive(hosted, tmp_path, jobs=4, steps=16)


@pytest.mark.full
@pytest.mark.timeout(1800)
async def test_twenty_jobs_survive_a_killed_server(hosted: Hosted, tmp_path: Path) -> None:
    await survive(hosted, tmp_path, jobs=20, steps=25)


async def test_a_new_version_goes_live_under_load(hosted: Hosted, tmp_path: Path) -> None:
    old, steps = hosted.entries[STILL], 6
    new = checkpoint(tmp_path / "new", STILL, seed=6)
    async with gateway(tmp_path / "gateway", hosted.url) as service:
        sent = [await service.submit(old, 0, num_inference_steps=steps)]
        host(new, hosted.repository)
        loading = asyncio.create_task(control.load(hosted.url, STILL))
        while not loading.done():
            if len(sent) < 3 or (await service.job(sent[-3].id)).is_terminal:  # three at a time, however slow the load
                sent.append(await service.submit(old, len(sent), num_inference_steps=steps))
            await asyncio.wait({loading}, timeout=0.3)
        assert [status.repository_version for status in await loading] == [2]
        await asyncio.sleep(2.5)  # by then the gateway has seen it
        sent += [await service.submit(old, len(sent), num_inference_steps=steps) for _ in range(2)]
        ended = await service.ended(*sent)
        assert [job.status for job in ended] == ["completed"] * len(sent)
        manifests = [await service.manifest(job) for job in ended]
    made_by = {1: old, 2: new}
    numbers = [manifest["repository_version"] for manifest in manifests]
    assert numbers[0] == 1
    assert numbers[-1] == 2
    for job, manifest, number in zip(ended, manifests, numbers, strict=True):
        assert manifest["model_version"] == made_by[number].version
        if job in (ended[0], ended[-1]):
            assert job.output is not None
            assert job.output.frames_sha256 == undisturbed(made_by[number], job.seed, num_inference_steps=steps)

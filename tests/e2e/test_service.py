"""The whole service as a caller meets it: the real command, the real engine on a tiny checkpoint, the real SDK."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from stillmotion import AsyncClient, Client, JobCancelled, JobEvent, Unprocessable
from stillmotion.types import Job

from model.presets import NoiseRange, preset
from model.tasks import task
from model.testing import build_random
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,  # a service with a shipped checkpoint; tests/e2e/test_playground.py has one with tiny ones
    pytest.mark.timeout(600),  # seconds on a busy machine
]
SIZE = (6, 64, 64)
"""Frames, height and width of the tiny checkpoint."""


@dataclass
class Service:
    """`stillmotion serve` in a process of its own, on one database and one folder of artifacts."""

    model: Path
    folder: Path
    url: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Come back when it says that it is ready."""
        places = ["--database-url", f"sqlite:///{self.folder}/jobs.db", "--artifacts", str(self.folder / "artifacts")]
        command = [sys.executable, "-m", "cli", "serve", "--model", str(self.model), "--port", "0", *places]
        environment = {**os.environ, "STILLMOTION_PROGRESS_INTERVAL_S": "0"}  # every step, however quick
        with self._log("stdout").open("wb") as stdout, self._log("stderr").open("wb") as stderr:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr)
        while "\n" not in self.said():
            assert self._process.poll() is None, self._log("stderr").read_text()
            time.sleep(0.05)
        self.url = self.said().split()[1]

    def stop(self, number: signal.Signals) -> int:
        """Its exit code."""
        assert self._process
        self._process.send_signal(number)
        return self._process.wait(60)

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Whatever state it is in."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def said(self) -> str:
        """Its standard output since it was started."""
        return self._log("stdout").read_text()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.txt"


@pytest.fixture(scope="module")
def one_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    # From sigma 700 an untrained network ends far from unit variance; from 20 its frames are neither black nor white.
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0))
    build_random(folder / "tiny", sized, task("image-to-video"), seed=5)
    running = Service(folder / "tiny", folder)
    yield running
    running.kill()


@pytest.fixture
def service(one_service: Service) -> Service:
    """Started by the first test, and used by all."""
    if not one_service.is_running:
        one_service.start()
    return one_service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(path, quality=90)
    return path


def sheet(data: bytes) -> np.ndarray:
    """A contact sheet's pixels. It shows frames this small pixel by pixel, so it tells what an mp4 rounds away."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"), np.float64)


def boxes(data: bytes) -> list[bytes]:
    """The names of an mp4's outermost boxes, in order (ISO/IEC 14496-12, 4.2)."""
    names, at = [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4], "big")
    return names


def test_it_says_one_line_and_serves_the_checkpoint(service: Service, client: Client) -> None:
    assert (
        service.said()
        == f"ready: {service.url} serves tiny; playground at {service.url}/, API docs at {service.url}/docs\n"
    )
    (model,) = client.models()
    assert (model.id, model.num_frames, model.height, model.width) == ("tiny", [SIZE[0]], *SIZE[1:])


@pytest.mark.slow
def test_the_seed_decides_the_frames(client: Client, photo: Path) -> None:
    first, again, other = (client.generate(photo, seed=seed, num_inference_steps=2) for seed in (7, 7, 8))
    assert first.output and again.output and other.output
    assert first.id != again.id
    assert first.output.frames_sha256 == again.output.frames_sha256 != other.output.frames_sha256
    assert client.content(first) == client.content(again) != client.content(other)


def test_the_download_is_an_mp4_that_plays(client: Client, photo: Path, tmp_path: Path) -> None:
    job = client.generate(photo, seed=1, num_inference_steps=2, fps=9)
    path = client.download_to(job, tmp_path / "clip.mp4")
    data = path.read_bytes()
    assert job.output
    assert (job.output.sha256, job.output.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    names = boxes(data)
    assert names[0] == b"ftyp"
    assert names.index(b"moov") < names.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 9)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert frames.shape == (*SIZE, 3)
    assert frames.std() > 5  # not a flat colour
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.slow
def test_progress_is_told_while_it_happens(client: Client, photo: Path) -> None:
    seen: list[tuple[float, JobEvent]] = []
    states: list[Job] = []

    def look(event: JobEvent) -> None:
        seen.append((time.monotonic(), event))
        if event.event == "step" and event.job.step == 1:
            states.append(client.get(event.job.id))

    total = 10
    job = client.subscribe(photo, look, seed=3, num_inference_steps=total)
    assert states[0].status == "in_progress"
    assert states[0].step < total  # told of the first step, the caller was not at the end yet
    steps = [(at, event.job) for at, event in seen if event.event == "step"]
    assert [(job.step, job.total_steps) for _, job in steps] == [(step, total) for step in range(1, total + 1)]
    assert steps[-1][0] - steps[0][0] > 0.5 * job.timings["denoise"] * (total - 1) / total
    phases = list(dict.fromkeys(event.job.phase for _, event in seen))
    assert phases == ["queued", "encode", "denoise", "decode", "mux"]
    percents = [event.job.progress for _, event in seen]
    assert (percents == sorted(percents), percents[-1]) == (True, 100)
    assert [event.id for event in client.stream_events(job)] == [event.id for _, event in seen]


@pytest.mark.slow
def test_cancel_stops_between_steps_and_frees_the_engine(client: Client, photo: Path) -> None:
    job = client.submit(photo, seed=4, num_inference_steps=200)
    for event in client.stream_events(job):
        if event.event == "step":
            client.cancel(job)
            break
    with pytest.raises(JobCancelled) as caught:
        client.poll(job, interval=0.02)
    stopped = caught.value.job
    assert stopped.cancelled_at_step is not None
    assert 1 <= stopped.cancelled_at_step < stopped.total_steps
    assert stopped.timings["compute"] > 0
    assert [event.event for event in client.stream_events(job)][-1] == "cancelled"
    alone = client.generate(photo, seed=4, num_inference_steps=1)
    assert alone.started_at is not None
    assert alone.timings["queued"] < alone.timings["encode"] + alone.timings["denoise"] + 1


@pytest.mark.slow
async def test_four_at_once_equal_their_solo_runs(service: Service, client: Client, photo: Path) -> None:
    asked = {steps: {"seed": 100 + steps, "num_inference_steps": steps} for steps in (6, 7, 8, 10)}
    async with AsyncClient(service.url) as several:
        together = await asyncio.gather(*(several.generate(photo, **settings) for settings in asked.values()))
    assert max(job.started_at or 0 for job in together) < min(job.completed_at or 0 for job in together)
    differences = []
    for job, settings in zip(together, asked.values(), strict=True):
        solo = client.generate(photo, **settings)
        assert (job.seed, job.total_steps) == (solo.seed, solo.total_steps)
        differences.append(sheet(client.content(job, "frames")) - sheet(client.content(solo, "frames")))
    # 90 dB over all four: in one clip this small it would be 4 values that round the other way, which is chance.
    assert np.abs(differences).max() <= 1
    assert np.square(differences).sum() / (len(differences) * np.prod([*SIZE, 3])) <= 255**2 / 10**9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "truncated"])
def test_a_bad_picture_is_refused_and_makes_no_job(client: Client, photo: Path, kind: str) -> None:
    before = [job.id for job in client.list()]
    picture = {"text": b"no picture", "truncated": photo.read_bytes()[:-200]}[kind]
    with pytest.raises(Unprocessable) as caught:
        client.submit(picture)
    assert (caught.value.status, caught.value.param) == (422, "image")
    assert caught.value.request_id
    assert [job.id for job in client.list()] == before


@pytest.mark.slow
def test_a_restart_keeps_what_is_done_and_finishes_what_is_not(service: Service, photo: Path, tmp_path: Path) -> None:
    with Client(service.url) as client:
        done = client.generate(photo, seed=5, num_inference_steps=2)
        video = client.content(done)
        cut_short = client.submit(photo, seed=5, num_inference_steps=12)
        for event in client.stream_events(cut_short):
            if event.event == "step":
                break
        finished = list(client.list(status="completed"))
    assert service.stop(signal.SIGTERM) == 0
    service.start()
    with Client(service.url) as client:
        whole = client.poll(cut_short)
        assert list(client.list(status="completed")) == [whole, *finished]
        assert done in finished
        assert client.content(done) == video
        assert client.download_to(done.id, tmp_path / "again.mp4").read_bytes() == video
        assert whole.output
        assert client.content(whole)[4:8] == b"ftyp"

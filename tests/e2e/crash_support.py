"""What the crash tests share: a server in a process of its own that can be killed, and what became of its jobs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
from PIL import Image
from stillmotion import Client
from stillmotion.types import Job

from model.presets import NoiseRange, preset
from model.tasks import task
from model.testing import build_random
from serving.jobs.database import Database
from serving.jobs.store import JobStore
from tests.conftest import ROOT

LEASE_S = 3.0
"""A killed server's jobs wait so long until they go on."""
LOOK_S = 0.1
ENVIRONMENT = {
    "STILLMOTION_LEASE_S": str(LEASE_S),
    "STILLMOTION_CHECKPOINT_EVERY_S": "0.3",
    "STILLMOTION_QUEUE_LIMIT": "1000",
    # Both sides of a comparison must have the same number of threads: it changes the last bits.
    "OMP_NUM_THREADS": "1",
}


def build_model(folder: Path) -> Path:
    """A tiny checkpoint with random weights."""
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0))
    build_random(folder / "tiny", sized, task("image-to-video"), seed=5)
    return folder / "tiny"


def build_interpolator(folder: Path) -> Path:
    """A tiny frame-interpolation checkpoint with random weights."""
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0))
    build_random(folder / "between", sized, task("frame-interpolation"), seed=6, num_frames=5)
    return folder / "between"


def draw_photo(path: Path) -> Path:
    """A small picture."""
    Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(path, quality=90)
    return path


def settings_of(count: int, steps: int) -> dict[int, int]:
    """Seed -> steps of so many jobs, `steps` to one and a half times as many."""
    return {seed: steps + (steps * (seed % 5)) // 8 for seed in range(count)}


@dataclass
class Server:
    """`stillmotion serve --deterministic` in a process of its own."""

    model: Path
    folder: Path
    database_url: str
    name: str = "server"
    arguments: tuple[str, ...] = ()
    url: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def launch(self) -> None:
        """Start the process, and do not wait for it."""
        places = ["--database-url", self.database_url, "--artifacts", str(self.folder / "artifacts")]
        command = [sys.executable, "-m", "cli", "serve", "--deterministic", "--model", str(self.model), "--port", "0"]
        with self._log("stdout").open("wb") as stdout, self._log("stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                [*command, *places, *self.arguments],
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT},
                stdout=stdout,
                stderr=stderr,
            )

    def start(self) -> None:
        """Start the process; come back when it says that it is ready."""
        self.launch()
        assert self._process is not None
        while "\n" not in self._log("stdout").read_text():
            assert self._process.poll() is None, self._log("stderr").read_text()
            time.sleep(0.05)
        self.url = self._log("stdout").read_text().split()[1]

    def kill(self) -> None:
        """SIGKILL, whatever it is at."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, and do not wait."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        assert self._process is not None
        return self._process.wait(120)

    def jobs(self) -> list[Job]:
        """Every job as this server tells."""
        answer = httpx2.get(f"{self.url}/jobs?limit=100", timeout=60)
        return [Job.model_validate(job) for job in answer.json()["data"]]

    def submit(self, photo: Path, asked: Mapping[int, int]) -> None:
        """One job for each seed."""
        with Client(self.url) as client:
            for seed, steps in asked.items():
                client.submit(photo, seed=seed, num_inference_steps=steps, idempotency_key=f"seed {seed}")

    def until_all_ended(self) -> list[Job]:
        """Every job, once each has ended."""
        while True:
            jobs = self.jobs()
            if all(job.is_terminal for job in jobs):
                return jobs
            time.sleep(LOOK_S)

    def _log(self, name: str) -> Path:
        return self.folder / f"{self.name}.{name}.txt"


@contextmanager
def serving(*servers: Server) -> Iterator[None]:
    """The servers, started, and killed at the end whatever happens."""
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.kill()


def undisturbed(model: Path, folder: Path, photo: Path, asked: Mapping[int, int]) -> dict[int, str]:
    """Seed -> frames_sha256, by a server that nothing happens to."""
    folder.mkdir()
    server = Server(model, folder, f"sqlite:///{folder}/jobs.db")
    with serving(server):
        server.submit(photo, asked)
        return {job.seed: job.output.frames_sha256 for job in server.until_all_ended() if job.output is not None}


def kill_at_random(victim: Server, witness: Server, kills: int, rng: random.Random) -> None:
    """Kill and restart `victim` so often, at moments drawn over the whole work; `witness` tells how far it is.

    Some kills come while it is still starting.
    """
    for share in sorted(rng.uniform(0.02, 0.85) for _ in range(kills)):
        while progress(witness) < share:
            time.sleep(LOOK_S)
        time.sleep(rng.uniform(0, 0.3))
        victim.kill()
        if rng.random() < 0.2:
            victim.launch()
            time.sleep(rng.uniform(0, 3))
            victim.kill()
        victim.start()


def progress(server: Server) -> float:
    """How much of all jobs is done, from 0 to 1."""
    jobs = server.jobs()
    return sum(job.progress for job in jobs) / (100 * len(jobs))


def check_histories(database_url: str, asked: Mapping[int, int]) -> int:
    """Assert that each job is there, was completed once and for all, and has a history without gaps.

    Returns:
        How many went on from a checkpoint, behind their first step.
    """
    database = Database(database_url)
    try:
        store = JobStore(database)
        jobs = [store.get(job_id) for job_id in store.ids()]
        assert sorted(job.seed for job in jobs) == sorted(asked)  # none lost, none twice
        resumed = 0
        for job in jobs:
            events, ended = store.events_after(job.id, 0)
            kinds = [event.event for event in events]
            assert ended
            assert [event.id for event in events] == list(range(1, len(events) + 1))
            assert [kind for kind in kinds if kind in ("completed", "failed", "cancelled", "expired")] == ["completed"]
            assert kinds[-1] == "completed"
            begun_again = max(index for index, event in enumerate(events) if event.job.status == "queued")
            steps = [event.job.step for event in events[begun_again:] if event.event == "step"]
            resumed += begun_again > 0 and bool(steps) and steps[0] > 1
        return resumed
    finally:
        database.close()

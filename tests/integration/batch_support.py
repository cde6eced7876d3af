"""What the tests of `stillmotion batch` share: tiny checkpoints, the command in a process of its own, the API."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
from PIL import Image
from stillmotion.types import Job

from model.catalog import ModelEntry
from model.presets import NoiseRange, preset
from model.tasks import TASKS, task
from model.testing import build_random
from serving.engine.inprocess import InProcessEngine
from serving.engine.settings import EngineSettings
from serving.gateway import create_app
from serving.offline.result_log import Result, parse
from tests.conftest import ROOT
from tests.contract.support import settings

FRAMES = {"image-to-video": 4, "text-to-video": 4, "frame-interpolation": 5, "multi-view": 21}
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def build_models(folder: Path, *tasks: str) -> list[ModelEntry]:
    """A tiny checkpoint with random weights for each of these tasks, or for every one."""
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0), height=32, width=48)
    return [build_random(folder / name, sized, TASKS[name], seed=5, num_frames=FRAMES[name]) for name in tasks or TASKS]


def draw_stills(folder: Path, count: int = 3) -> None:
    """Pictures 0.jpg, 1.jpg, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        extent = (-2 + number / 10, -1.5, 1, 1.5)
        Image.effect_mandelbrot((90, 60), extent, 40).convert("RGB").save(folder / f"{number}.jpg", quality=90)


def mixed_rows(count: int, steps: int) -> list[dict[str, Any]]:
    """Rows of all tasks with all kinds of settings."""
    kinds: list[dict[str, Any]] = [
        {"image": "0.jpg"},
        {"task": "text-to-video", "prompt": "a red ball"},
        {"image": "1.jpg", "solver": "heun"},
        {"task": "frame-interpolation", "image": "0.jpg", "last_image": "2.jpg", "fps": 12},
        {"image": "2.jpg", "solver": "dpmpp-2m", "width": 64, "output_format": "webm"},
        {"task": "multi-view", "image": "1.jpg", "elevation": 15.0, "num_inference_steps": max(2, steps // 4)},
        {"image": "0.jpg", "max_guidance_scale": 1.0, "min_guidance_scale": 1.0, "resize_mode": "fit"},
        {"image": "1.jpg", "motion_bucket_id": 30, "noise_aug_strength": 0.2, "output_format": "gif"},
    ]
    rows = [{"num_inference_steps": steps + number % 5, **kinds[number % len(kinds)]} for number in range(count)]
    rows = [{**row, "seed": 11 + number} if row.get("solver") == "heun" else row for number, row in enumerate(rows)]
    return [{**row, "id": f"shot-{number}"} for number, row in enumerate(rows, 1)]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A manifest."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@dataclass
class Command:
    """`stillmotion batch` in a process of its own."""

    arguments: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", "batch", *self.arguments],
                cwd=ROOT,
                env={**os.environ, **QUIET, **self.environment},
                stdout=log,
                stderr=log,
            )

    def run(self, expected: int) -> None:
        """From its start to its end, which must be this exit code."""
        self.start()
        assert self.wait() == expected, self.log.read_text()

    def wait(self) -> int:
        """The exit code; every process of it that could render is gone, too."""
        assert self.process is not None
        family = self._family()
        while (code := self.process.poll()) is None:
            family |= self._family()
            time.sleep(0.2)
        self._gone(family)
        return code

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be so while it runs."""
        assert self.process is not None
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL of the driver alone; its workers end by themselves."""
        assert self.process is not None
        family = self._family()
        self.process.kill()
        self.process.wait()
        self._gone(family)

    def kill_worker(self) -> None:
        """SIGKILL of the process with the engine."""
        workers = [one for one in self._family() if self._renders(one)]
        assert workers, self._family()
        workers[0].send_signal(signal.SIGKILL)

    def _family(self) -> set[psutil.Process]:
        assert self.process is not None
        try:
            return set(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return set()

    @staticmethod
    def _gone(family: set[psutil.Process]) -> None:
        _, alive = psutil.wait_procs(family, timeout=15)
        assert not [one for one in alive if Command._renders(one)], alive
        for one in alive:  # Ray's agents, which take their time to miss it
            one.kill()

    @staticmethod
    def _renders(process: psutil.Process) -> bool:
        try:
            return "MapBatches" in " ".join(process.cmdline())
        except psutil.Error:  # it has just ended
            return False


def results(out: Path, name: str = "results.jsonl") -> list[Result]:
    """The result table."""
    return [parse(line) for line in (out / name).read_bytes().splitlines()]


def records(out: Path) -> dict[str, tuple[int, bytes]]:
    """Every record there is: when it was made, and what it says."""
    folder = out / "records"
    found = list(folder.glob("*.json")) if folder.exists() else []
    return {path.stem: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def complete(out: Path) -> int:
    """How many records there are."""
    folder = out / "records"
    return sum(1 for _ in folder.iterdir()) if folder.exists() else 0


async def _ask(client: httpx2.AsyncClient, row: Mapping[str, Any], stills: Path, seed: int) -> str:
    """What the API makes of a row's fields: the SHA-256 of the frames."""
    fields = {key: value for key, value in row.items() if key not in ("id", "task")}
    name = str(row.get("task", "image-to-video"))
    for picture in task(name).pictures:
        fields[picture] = {"data": base64.b64encode((stills / str(fields[picture])).read_bytes()).decode()}
    answer = await client.post(f"/generate/{name}", json={**fields, "seed": seed})
    assert answer.status_code == 202, answer.text
    job = Job.model_validate(answer.json())
    while not job.is_terminal:
        await asyncio.sleep(0.02)
        job = Job.model_validate((await client.get(job.urls.self)).json())
    assert job.output is not None, job
    return job.output.frames_sha256


async def over_the_api(
    entries: list[ModelEntry], rows: Sequence[tuple[Mapping[str, Any], int]], folder: Path
) -> list[str]:
    """The frames of each (row, seed), by the gateway over a deterministic engine here; `folder` has the stills."""
    engine = InProcessEngine(entries, EngineSettings(device="cpu", deterministic=True, checkpoint_every_s=None))
    app = create_app(engine, entries, settings(folder, queue_limit=1000))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=600) as client,
    ):
        return list(await asyncio.gather(*(_ask(client, row, folder, seed) for row, seed in rows)))

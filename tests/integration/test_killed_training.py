"""A real `stillmotion train` that is killed at a random step and resumed has the losses of one that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.test_training_road import SMALL, VAE, make_dataset
from training.train import train

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]

RECIPE, FURTHER = "mini-image-to-video", 50
SETTINGS = [
    "preset=tiny",
    "height=64",
    "width=128",
    "num_frames=4",
    "copying_start=false",
    "data.moves=2",
    "window_until=20",
    "window_height=32",
    "window_width=64",
    "optim.iterations=72",
    "optim.warmup=5",
    "optim.log_every=1",
    "optim.checkpoint_every=4",
]


def begin(root: Path, data: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    command = ["train", RECIPE, "--data", str(data), "--out", str(out), *settings, *options]
    return subprocess.Popen([sys.executable, "-m", "cli", *command], cwd=root, stderr=subprocess.DEVNULL)


def curve(out: Path) -> dict[int, float]:
    """Loss by iteration; of one that was done twice, the later."""
    log = out / RECIPE / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return {line["step"]: line["loss"] for line in (json.loads(one) for one in lines if one.endswith("}"))}


def test_the_losses_of_fifty_further_steps_are_those_of_an_uninterrupted_run(root: Path, tmp_path: Path) -> None:
    data, whole, parts = make_dataset(tmp_path / "data"), tmp_path / "whole", tmp_path / "parts"
    train("mini-vae", data, whole, VAE, False, lambda *_: None)
    train("mini-image-encoder", data, whole, [*SMALL, "optim.batch=2"], False, lambda *_: None)
    shutil.copytree(whole, parts)
    assert begin(root, data, whole).wait(1800) == 0
    stop = random.SystemRandom().randint(5, 15)
    process = begin(root, data, parts)
    while process.poll() is None and max(curve(parts), default=0) < stop:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "the run ended before it was killed"
    killed_at = max(curve(parts))
    assert begin(root, data, parts, "--resume").wait(1800) == 0
    wanted, found = curve(whole), curve(parts)
    assert found.keys() == wanted.keys() == set(range(1, 73))
    further = [step for step in wanted if step > killed_at]
    assert len(further) >= FURTHER
    worst = max(abs(found[step] - wanted[step]) / wanted[step] for step in wanted)
    assert worst < 1e-6, f"killed at {killed_at}: {worst}"

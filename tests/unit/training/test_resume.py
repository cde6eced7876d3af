"""A run that is killed, or shared out among processes, has the loss curve of one that is not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from tests.unit.training import toy_run
from training.sharded_checkpoint import latest

pytestmark = pytest.mark.timeout(1200)  # seconds on a quiet machine: 30
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.unit.training.toy_run"])  # so that torch is imported once for all the runs


def work(folder: Path, overrides: tuple[str, ...], rank: int, size: int, port: int) -> None:
    """In another process: one of a run's processes."""
    own = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(own)
    toy_run.main(folder, list(overrides))


def start(folder: Path, *overrides: str, rank: int = 0, size: int = 1, port: int = 0) -> BaseProcess:
    process = SERVER.Process(target=work, args=(folder, overrides, rank, size, port))
    process.start()
    return process


def finish(*processes: BaseProcess) -> None:
    for process in processes:
        process.join(900)
        assert process.exitcode == 0


def curve(folder: Path) -> dict[int, float]:
    """Loss by iteration; of one that was done twice, the later."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return {line["step"]: line["loss"] for line in whole}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(start(folder))
    return folder


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(uninterrupted: Path, tmp_path: Path) -> None:
    folder, stop = tmp_path / "run", random.SystemRandom().randint(4, 16)
    process = start(folder)
    while process.is_alive() and len(curve(folder) if (folder / "log.jsonl").exists() else {}) < stop:
        time.sleep(0.05)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    finish(start(folder))
    whole, parts = curve(uninterrupted), curve(folder)
    assert parts.keys() == whole.keys() == set(range(1, 21))
    assert max(abs(parts[step] - whole[step]) / whole[step] for step in whole) < 1e-6, f"killed at {stop}"


def in_two_processes(folder: Path, *overrides: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    finish(*[start(folder, *overrides, rank=rank, size=2, port=port) for rank in range(2)])


@pytest.mark.full
def test_a_killed_sharded_run_goes_on_in_one_process(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(folder, "runtime.sharding=fsdp2", rank=rank, size=2, port=port) for rank in range(2)]
    while all(one.is_alive() for one in processes):
        if len(curve(folder) if (folder / "log.jsonl").exists() else {}) >= 8:
            break
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.join()
    assert latest(folder) is not None
    assert not (folder / "state.pt").exists()
    finish(start(folder))
    whole, parts = curve(uninterrupted), curve(folder)
    assert parts.keys() == whole.keys() == set(range(1, 21))
    assert max(abs(parts[step] - whole[step]) for step in whole) < 1e-5
    assert latest(folder) is None


@pytest.mark.full
def test_muons_matrices_may_lie_in_parts(tmp_path: Path) -> None:
    finish(start(tmp_path / "one", "optim.method=muon"))
    in_two_processes(tmp_path / "two", "optim.method=muon", "runtime.sharding=fsdp2")
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert one.keys() == two.keys() == set(range(1, 21))
    assert max(abs(two[step] - one[step]) for step in one) < 1e-5


@pytest.mark.parametrize(
    "sharding", [pytest.param("none", marks=pytest.mark.slow), pytest.param("fsdp2", marks=pytest.mark.full)]
)
def test_two_processes_have_the_loss_curve_of_one(uninterrupted: Path, tmp_path: Path, sharding: str) -> None:
    in_two_processes(tmp_path, f"runtime.sharding={sharding}")
    whole, shared = curve(uninterrupted), curve(tmp_path)
    assert shared.keys() == whole.keys()
    assert max(abs(shared[step] - whole[step]) for step in whole) < 1e-5
    ours, theirs = (torch.load(folder / "state.pt", weights_only=True)["ema"] for folder in (tmp_path, uninterrupted))
    assert ours.keys() == theirs.keys()
    # Adam divides by the root of a gradient's square: where that is about zero, rounding decides the sign of a step.
    far = sum(int(((ours[name] - theirs[name]).abs() > 1e-4).sum()) for name in ours)
    assert far < 1e-3 * sum(one.numel() for one in ours.values())


@pytest.mark.slow
def test_accumulated_and_recomputed_gradients_are_the_same_run(uninterrupted: Path, tmp_path: Path) -> None:
    finish(start(tmp_path, "runtime.accumulate=2", "runtime.checkpointing=true", "optim.iterations=20"))
    whole, parts = curve(uninterrupted), curve(tmp_path)
    assert max(abs(parts[step] - whole[step]) for step in whole) < 1e-5

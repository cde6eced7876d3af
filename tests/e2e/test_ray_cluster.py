"""A Ray cluster of three nodes: rendering and curation lose a node, or all; nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.media.video import encode_video
from tests.conftest import ROOT
from tests.integration.batch_support import (
    QUIET,
    build_models,
    complete,
    draw_stills,
    mixed_rows,
    over_the_api,
    records,
    results,
    write_jsonl,
)
from tests.unit.training.curation.clip_support import pan

pytest.importorskip("ray", reason="needs the [batch] extra")
pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]
NODES = 3
ROWS = 60
FILMS = 12


class Nodes:
    """A cluster in this process: a head and two more, each with two CPUs."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args=self._size(include_dashboard=False))
        self.others = [self.cluster.add_node(**self._size()) for _ in range(NODES - 1)]
        self.cluster.wait_for_nodes()
        self.address: str = self.cluster.address

    @staticmethod
    def _size(**more: Any) -> dict[str, Any]:
        return {"num_cpus": 2, "object_store_memory": 150_000_000, **more}

    def lose_one(self) -> None:
        """SIGKILL of a node's processes."""
        self.cluster.remove_node(self.others.pop(), allow_graceful=False)

    def end(self) -> None:
        """All of them."""
        self.cluster.shutdown()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What nodes, workers and drivers start with: this code, one thread."""
    quiet = {**QUIET, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client" / "src")])}
    quiet["RAY_worker_niceness"] = "0"  # 15 by default, with which workers get nothing beside other tests
    for name, value in quiet.items():
        monkeypatch.setenv(name, value)
    return quiet


@pytest.fixture
def clusters(environment: dict[str, str]) -> Iterator[Callable[[], Nodes]]:
    started: list[Nodes] = []

    def start() -> Nodes:
        started.append(Nodes())
        return started[-1]

    yield start
    for nodes in started:
        nodes.end()


class Run:
    """A command in a process of its own."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", *arguments], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be so while it runs."""
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def end(self) -> int:
        """The exit code."""
        return self.process.wait(timeout=1800)


async def test_sixty_rows_survive_the_loss_of_a_node_and_of_the_cluster(
    clusters: Callable[[], Nodes], tmp_path: Path
) -> None:
    entries = build_models(tmp_path / "models")
    draw_stills(tmp_path)
    rows = mixed_rows(ROWS, steps=6)
    manifest, out = write_jsonl(tmp_path / "manifest.jsonl", rows), tmp_path / "out"
    models = [part for entry in entries for part in ("--model", str(entry.path))]

    def command(nodes: Nodes) -> list[str]:
        return ["batch", str(manifest), "--out", str(out), "--deterministic", *models, "--ray-address", nodes.address]

    first = clusters()
    run = Run(command(first), tmp_path / "first.txt")
    run.until(lambda: complete(out) >= ROWS // 5)
    first.lose_one()
    run.until(lambda: complete(out) >= ROWS // 2)
    before = records(out)
    first.end()  # the head too
    assert run.end() != 0, "nobody is left who could render"

    before |= records(out)
    second = clusters()
    again = Run(command(second), tmp_path / "second.txt")
    again.until(lambda: complete(out) > len(before))
    second.lose_one()
    assert again.end() == 0, again.log.read_text()

    after = records(out)
    assert before.items() <= after.items(), "a row was done again"
    made = results(out)
    expected = [(number, f"shot-{number}", "completed") for number in range(1, ROWS + 1)]
    assert [(one.row, one.id, one.status) for one in made] == expected
    frames = await over_the_api(entries, [(row, one.seed) for row, one in zip(rows, made, strict=True)], tmp_path)
    assert [one.frames_sha256 for one in made] == frames


def test_twelve_films_are_curated_as_by_one_process_although_a_node_is_lost(
    clusters: Callable[[], Nodes], tmp_path: Path
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for number in range(FILMS):
        shots = [pan(24, pixels=1 + number % 3, seed=10 * number + shot) for shot in range(3)]
        (films / f"{number:02d}.mp4").write_bytes(encode_video(np.concatenate(shots), 8, "mp4"))
    tools = ["--score", "picture", "--score", "motion", "--caption", "measured"]

    def command(out: Path, *more: str) -> list[str]:
        return ["curate", "run", str(films), "--out", str(out), *tools, *more]

    alone = Run(command(tmp_path / "alone"), tmp_path / "alone.txt")
    assert alone.end() == 0, alone.log.read_text()
    nodes, out = clusters(), tmp_path / "together"
    run = Run(command(out, "--runner", "ray", "--ray-address", nodes.address), tmp_path / "together.txt")
    run.until(lambda: sum(1 for _ in out.glob("clips/**/*.mp4")) >= FILMS // 3)
    nodes.lose_one()
    assert run.end() == 0, run.log.read_text()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "alone", out)]
    assert manifests[0]["clips"] >= FILMS
    assert manifests[0]["content_sha256"] == manifests[1]["content_sha256"]

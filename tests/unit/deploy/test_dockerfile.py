"""The Dockerfile: linted, both targets run as nobody in particular, and what they start exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.unit.deploy.support import Stage, stages

PORTS = {"gateway": {"8000"}, "engine": {"8000", "8001", "8002"}, "batch": {"6379", "8265", "10001"}}
HEALTH_PATHS = {"gateway": "/health/live", "engine": "/v2/health/ready"}


@pytest.fixture
def found(root: Path) -> dict[str, Stage]:
    return stages((root / "Dockerfile").read_text())


def test_it_passes_the_linter(root: Path) -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert linter, "the dev extra brings hadolint"
    done = subprocess.run(
        [linter, "--no-color", "--failure-threshold", "warning", root / "Dockerfile"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("target", sorted(PORTS))
def test_each_target_is_unprivileged_and_says_how_it_is(found: dict[str, Stage], target: str) -> None:
    stage = found[target]
    assert stage.last("USER") == "10001"
    assert any("useradd" in run and "--uid 10001" in run for run in stage.all("RUN"))
    order = [word for word, _ in stage.steps]
    assert "RUN" not in order[order.index("USER") :], "nothing is installed as the user that serves"
    assert set(stage.last("EXPOSE").split()) == PORTS[target]
    if target not in HEALTH_PATHS:
        assert '"ray", "health-check"' in stage.last("HEALTHCHECK")
        return
    probe = re.search(r"127\.0\.0\.1:(\d+)(/[\w/]+)", stage.last("HEALTHCHECK"))
    assert probe
    assert probe[1] in PORTS[target]
    assert probe[2] == HEALTH_PATHS[target]


def test_the_engine_listens_where_it_says(found: dict[str, Stage]) -> None:
    flags = dict(word.removeprefix("--").split("=") for word in found["engine"].command("CMD"))
    assert {flags[f"{name}-port"] for name in ("http", "grpc", "metrics")} == PORTS["engine"]


def test_what_is_copied_exists_and_is_let_through(root: Path, found: dict[str, Stage]) -> None:
    let_through = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for stage in found.values():
        sources = {name for text in stage.all("COPY") if "--from" not in text for name in text.split()[:-1]}
        assert all((root / name).exists() for name in sources)
        assert sources <= let_through, "what .dockerignore holds back cannot be copied"
    packages = {path.parent.name for path in root.glob("*/__init__.py")}
    assert packages <= let_through, "a package that is not copied is missing from the image"


def test_the_extras_exist_and_only_the_engine_samples(root: Path, found: dict[str, Stage]) -> None:
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in ("gateway-packages", "engine", "batch-packages"):
        assert set(found[name].variables("ARG")["EXTRAS"].split(",")) <= set(extras)
    gateway = {
        need for extra in found["gateway-packages"].variables("ARG")["EXTRAS"].split(",") for need in extras[extra]
    }
    assert not [need for need in gateway if need.startswith(("torch", "diffusers", "stillmotion-server[engine]"))]
    assert all("torch==2.13.0" in " ".join(found[name].all("RUN")) for name in ("engine", "batch-packages"))
    assert "torch==2.13.0" in (root / "constraints.txt").read_text()

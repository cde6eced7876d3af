"""Wheels of both distributions: they build, install without the checkout, and carry what is served and shown."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LOOK = """
import json, sys
from importlib.metadata import entry_points, version
from pathlib import Path
import cli.main, model.catalog, serving, stillmotion, training

folder = Path(sys.argv[1])
print(json.dumps({
    "elsewhere": [m.__file__ for m in (cli.main, model.catalog, serving, stillmotion, training)
                  if folder not in Path(m.__file__).parents],
    "models": sorted(entry.name for entry in model.catalog.zoo()),
    "web": sorted(path.name for path in Path(serving.__file__).parent.glob("web/*")),
    "migrations": len(list(Path(serving.__file__).parent.glob("jobs/migrations/versions/*.py"))),
    "page": Path(training.__file__).parent.joinpath("curation/calibrate/page.html").is_file(),
    "versions": [version("stillmotion"), version("stillmotion-server"), stillmotion.__version__],
}))
"""


PACKAGES = ("cli", "client", "export", "model", "serving", "training")
FILES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")
MODELS = ["mini-frame-interpolation", "mini-image-to-video", "mini-multi-view", "mini-text-to-video"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, built from a copy, so that the checkout stays as it was."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "profile.json", "build")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    for folder in (source, source / "client"):
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
        subprocess.run(command, cwd=folder, check=True)
    return {path.name.split("-")[0]: path for path in out.glob("*.whl")}


def test_both_carry_metadata_that_an_index_takes(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {"stillmotion", "stillmotion_server"}
    for wheel in wheels.values():
        with ZipFile(wheel) as archive:
            (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
            metadata = message_from_bytes(archive.read(name))
            assert metadata["License-Expression"] == "Apache-2.0"
            assert metadata["Description-Content-Type"] == "text/markdown" and metadata["Requires-Python"]
            assert [one for one in archive.namelist() if "licenses/" in one]
            assert not [one for one in archive.namelist() if one.startswith(("tests/", "benchmarks/", "docs/"))]
            assert not [one for one in archive.namelist() if one.endswith((".db", "profile.json", ".pyc"))]


def test_they_install_and_carry_the_playground_and_the_zoo(wheels: dict[str, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*install, *map(str, wheels.values())], check=True)
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
        return done.stdout

    found = json.loads(run(sys.executable, "-c", LOOK, str(site)))
    assert not found["elsewhere"]
    assert found["models"] == MODELS
    assert set(found["web"]) >= {path.name for path in (ROOT / "serving" / "web").iterdir() if path.is_file()}
    assert found["migrations"] and found["page"]
    assert len(set(found["versions"])) == 1
    assert run(str(site / "bin" / "stillmotion"), "--version").strip() == f"stillmotion {found['versions'][0]}"

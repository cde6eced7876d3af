"""The Dockerfile's RUN commands, run here as they stand, each stage in a folder of its own: no container engine.

What is rehearsed: COPY from the checkout, and every RUN whose effects stay below the stage's folders (PREFIX is set to
one of them). What is not: pulling the base images, `useradd`, and Triton's own Python; docs/operations.md says so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from model.media.video import decode_video
from tests.integration.triton_support import checkpoint, free_port, host, picture
from tests.unit.deploy.support import Stage, stages

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
HELD_BACK = shutil.ignore_patterns("__pycache__", "*.egg-info", "profile.json")
MIB = 1024 * 1024


class StepFailed(Exception):
    """A RUN line ended with an error; what it said."""


@dataclass(slots=True)
class Rehearsal:
    """One stage carried out below `folder`; `arguments` are build arguments."""

    stage: Stage
    folder: Path
    arguments: dict[str, str] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def prefix(self) -> Path:
        return self.folder / "prefix"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("STILLMOTION_", "PYTHON"))
        }
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return inherited | self.stage.variables("ARG") | self.arguments | {"PREFIX": str(self.prefix), "PATH": path}

    def carry_out(self, root: Path) -> None:
        source = self.folder / "src"
        source.mkdir(parents=True)
        for word, text in self.stage.steps:
            if word == "COPY":
                for name in text.split()[:-1]:
                    copy(root / name, source / name)
            elif word == "RUN" and "useradd" in text:
                self.left_out.append(text)
            elif word == "RUN":
                words = ["/bin/sh", "-ec", text]
                done = subprocess.run(
                    words, cwd=source, env=self.environment, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise StepFailed(f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
                self.ran.append(text)
            elif word == "USER":
                break

    def size(self) -> int:
        """Bytes of the installed packages."""
        return tree_size(self.prefix)


def tree_size(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=HELD_BACK)
    else:
        shutil.copy(source, target)


def rehearse(root: Path, folder: Path, name: str, **arguments: str) -> Rehearsal:
    done = Rehearsal(stages((root / "Dockerfile").read_text())[name], folder, arguments)
    done.carry_out(root)
    return done


@pytest.fixture(scope="module")
def gateway(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    return rehearse(root, tmp_path_factory.mktemp("gateway"), "gateway-packages")


def test_the_gateways_packages_have_no_torch(gateway: Rehearsal) -> None:
    assert len(gateway.ran) == 3
    assert gateway.left_out == []
    listed = subprocess.run(
        [gateway.prefix / "bin" / "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert {"stillmotion", "stillmotion-server", "fastapi", "tritonclient", "psycopg", "s3fs"} <= names
    assert not names & {"torch", "diffusers", "transformers", "onnxruntime", "scipy"}
    print(f"gateway packages: {gateway.size() / MIB:.0f} MiB in {len(names)} distributions")
    packages = [path for path in gateway.prefix.glob("lib/*/site-packages/*") if path.is_dir()]
    largest = sorted(((tree_size(path) / MIB, path.name) for path in packages), reverse=True)[:6]
    print(", ".join(f"{name} {size:.0f}" for size, name in largest))
    assert gateway.size() < 450 * MIB


def test_the_gateway_looks_for_servers_from_them(gateway: Rehearsal, tmp_path: Path) -> None:
    """The image's own CMD, with no Triton to be found: it says so after a minute, and is to be started again."""
    stage = stages(Path(__file__).parents[3].joinpath("Dockerfile").read_text())["gateway"]
    words = [word.replace("triton:8001", "127.0.0.1:9") for word in stage.command("CMD")]
    command = [gateway.prefix / "bin" / "stillmotion", *words, "--host", "127.0.0.1", "--port", "0"]
    done = subprocess.run(
        command, cwd=tmp_path, env=gateway.environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert "no Triton server at 127.0.0.1:9 serves a model" in done.stderr


@contextmanager
def process(words: list[str | Path], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A program in the background, told to end at the end; what it said is added to an error."""
    with (folder / f"{Path(words[1]).name}.log").open("w+") as log:
        running = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            yield
        except Exception as error:
            log.seek(0)
            error.add_note(log.read()[-3000:])
            raise
        finally:
            running.terminate()
            try:
                running.wait(90)
            finally:
                running.kill()


def until(ready: Callable[[], bool], seconds: float) -> None:
    """Wait for it, or fail."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_video_comes_through_the_gateways_packages(gateway: Rehearsal, tmp_path: Path) -> None:
    """`stillmotion triton` with torch on one side, `stillmotion serve` of the image's packages on the other."""
    entry = checkpoint(tmp_path / "checkpoints", "image-to-video")
    host(entry, tmp_path / "repository")
    grpc, http, port = free_port(), free_port(), free_port()
    ours = Path(sys.executable).parent / "stillmotion"
    ports = ["--grpc-port", str(grpc), "--http-port", str(http), "--metrics-port", "0"]
    triton = [ours, "triton", "--model-repository", tmp_path / "repository", "--yes", *ports]
    serve = [gateway.prefix / "bin" / "stillmotion", "serve", "--engine", "triton", "--triton-url", f"127.0.0.1:{grpc}"]
    with (
        process(triton, tmp_path, os.environ | {"OMP_NUM_THREADS": "1"}),
        process([*serve, "--port", str(port)], tmp_path, gateway.environment),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):

        def answers() -> bool:
            try:
                return client.get("/health/ready").status_code == 200
            except httpx2.TransportError:
                return False

        until(answers, 300)
        picture_of = {"image": ("still.png", picture(), "image/png")}
        sent = client.post("/generate/image-to-video", files=picture_of, data={"seed": "4", "num_inference_steps": "2"})
        assert sent.status_code == 202, sent.text
        job = sent.json()["urls"]["self"]
        until(lambda: client.get(job).json()["status"] in ("completed", "failed"), 120)
        assert client.get(job).json()["status"] == "completed", client.get(job).text
        video = client.get(f"{job}/content").content
    assert decode_video(video)[0].shape[0] == entry.num_frames[0]


def test_the_engines_packages_install_and_import(root: Path, tmp_path: Path) -> None:
    """All of them; without TensorRT where its wheels, stubs that fetch from NVIDIA's own index, do not reach it."""
    try:
        engine = rehearse(root, tmp_path / "all", "engine")
    except StepFailed as error:
        if "wheel_stub" not in str(error):
            raise
        extras = stages((root / "Dockerfile").read_text())["engine"].variables("ARG")["EXTRAS"].split(",")
        rest = ",".join(name for name in extras if name != "tensorrt")
        engine = rehearse(root, tmp_path / "rest", "engine", EXTRAS=rest)
    assert len(engine.ran) == 2
    assert all("useradd" in text for text in engine.left_out)
    assert len(engine.left_out) == 1
    print(f"engine packages, {engine.environment['EXTRAS']}: {engine.size() / MIB:.0f} MiB")


def test_a_ray_nodes_packages_install_and_run(root: Path, tmp_path: Path) -> None:
    node = rehearse(root, tmp_path, "batch-packages")
    assert len(node.ran) == 2
    version = subprocess.run(
        [node.prefix / "bin" / "ray", "--version"], capture_output=True, text=True, check=True
    ).stdout
    pinned = re.findall(r"^ray==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert version.split()[-1] in pinned
    submit = [node.prefix / "bin" / "ray", "job", "submit", "--help"]
    assert subprocess.run(submit, capture_output=True, check=False).returncode == 0, "KubeRay's submitter runs it"
    print(f"batch packages: {node.size() / MIB:.0f} MiB")

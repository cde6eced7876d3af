"""`--lora` of generate, replay and serve: a file or a name, and what is told where it cannot be applied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from cli.serve import _in_process
from model.checkpoint import load
from model.errors import InvalidRequest
from model.lora.catalog import FOLDER, LoraEntry
from model.presets import preset
from model.tasks import TASKS
from model.testing import build_random
from serving.engine.settings import EngineSettings
from tests.support.loras import drawn_lora

pytestmark = pytest.mark.timeout(600)  # seconds; five on a quiet machine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_random(folder, preset("tiny"), TASKS["image-to-video"], num_frames=3)
    return folder


@pytest.fixture(scope="module")
def pan(tiny: Path) -> LoraEntry:
    return drawn_lora(tiny.parent / "pan.safetensors", load(tiny).unet, 1)


@pytest.fixture
def still(tmp_path: Path) -> Path:
    path = tmp_path / "still.png"
    Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(path)
    return path


def run(*arguments: object) -> tuple[int, str, dict[str, Any]]:
    """Exit code, stderr, and the answer."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stderr, json.loads(result.stdout) if result.stdout else {}


@pytest.mark.slow
def test_a_file_or_a_name_and_the_same_video_again(tiny: Path, pan: LoraEntry, still: Path, tmp_path: Path) -> None:
    common = ("generate", still, "--model", tiny, "--steps", 1, "--max-guidance", 1, "--seed", 7, "--json")
    code, told, first = run(*common, "--lora", pan.path, "-o", tmp_path / "a.mp4")
    assert code == 0, told
    assert first["manifest"]["lora"] == {
        "name": "pan",
        "version": pan.version,
        "scale": 1.0,
        "rank": 4,
        "alpha": 6.0,
        "base": "",
    }
    code, told, _ = run("replay", tmp_path / "a.mp4", "--model", tiny, "--json")
    assert (code, "offers no LoRA 'pan'" in told) == (2, True)
    code, _, again = run("replay", tmp_path / "a.mp4", "--model", tiny, "--lora", pan.path, "--json")
    assert (code, again["identical"]) == (0, True)
    (tiny / FOLDER).mkdir()
    shutil.copy(pan.path, tiny / FOLDER)
    code, told, half = run(*common, "--lora", "pan", "--lora-scale", 0.5, "-o", tmp_path / "b.mp4")
    shutil.rmtree(tiny / FOLDER)
    assert code == 0, told
    assert (half["manifest"]["lora"]["version"], half["manifest"]["lora"]["scale"]) == (pan.version, 0.5)
    assert half["frames_sha256"] != first["frames_sha256"]
    assert half["model_version"] == first["model_version"]


def test_what_cannot_be_applied_is_told_in_a_line(tiny: Path, still: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pytorch_lora_weights.bin"
    pickled.write_bytes(b"\x80\x04.")
    for options, code, why in (
        (("--lora", "pan"), 2, "tiny offers no LoRA 'pan'"),
        (("--lora-scale", 1), 2, "lora and lora_scale go together"),
        (("--lora", pickled), 1, "may run code"),
    ):
        ended, told, _ = run("generate", still, "--model", tiny, *options, "-o", tmp_path / "x.mp4")
        assert (ended, told.count("\n"), why in told) == (code, 1, True), told


def test_a_server_that_could_not_apply_them_does_not_start() -> None:
    for backend in ("onnxruntime", "openvino", "tensorrt"):
        with pytest.raises(InvalidRequest, match="cannot apply a LoRA; choose torch,") as caught:
            _in_process([], ["pan.safetensors"], EngineSettings(backend=backend))
        assert caught.value.code == "lora_unsupported"
    code, told, _ = run("serve", "--engine", "triton", "--triton-url", "127.0.0.1:1", "--lora", "pan.safetensors")
    assert (code, "folder loras" in told) == (2, True)

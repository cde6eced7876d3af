"""Every command in an environment that has only some extras: it runs, or names the extra that it wants, in one line.

Each environment is one process in which the packages of the other extras cannot be imported; all commands run in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from PIL import Image

from tests.conftest import ROOT

ENGINE: Final = ["torch", "diffusers", "transformers", "safetensors", "jaxtyping", "accelerate"]
SERVE: Final = [
    *("fastapi", "fastapi_offline", "starlette", "uvicorn", "httptools", "uvloop", "sqlalchemy", "alembic"),
    *("pydantic_settings", "sse_starlette", "prometheus_client", "stillmotion"),
]
"""Without fsspec and httpx, which torch and diffusers bring too."""
OTHERS: Final = [
    *("s3fs", "aiohttp", "pyarrow", "ray", "rapidocr", "onnxruntime", "onnx", "onnxscript", "scenedetect", "cv2"),
    *("openvino", "scipy", "skimage", "matplotlib", "tensorboard", "tritonclient", "grpc", "pybullet", "open_clip"),
]
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "generate": ("generate still.png --model nothing -o x.mp4", "engine"),
    "replay": ("replay replay.json", "engine,serve"),
    "serve": ("serve --model nothing", "engine,serve"),
    "keys": ("keys list", "serve"),
    "batch": ("batch nowhere.jsonl --out out", "batch"),
    "curate": ("curate run nowhere.mp4 --out D", "curate"),
    "train": ("train mini-vae --data pictures --out runs", "train"),
    "eval": ("eval mini-image-to-video --data pictures", "train"),
    "data": ("data starter --out D", "train"),
    "export": ("export nothing --out R", "export"),
    "triton": ("triton status --url 127.0.0.1:9", "triton"),
}
"""A call that gets as far as its imports and does no work, and the command's extra."""

RUNS: Final = {
    "nothing": {"--help", "--version", "models"},
    "engine": {"--help", "--version", "models", "generate"},
    "serve": {"--help", "--version", "models", "keys"},
}
"""What must get past its imports in each environment."""

PROGRAM: Final = """
import json, sys
blocked = set(json.loads(sys.argv[1]))
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
# Libraries that ask whether an optional package is there get the same answer.
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.partition(".")[0] in blocked else find_spec(name, package)
)
from typer.testing import CliRunner
from cli.main import app
answers = {}
for name, call in json.loads(sys.argv[2]).items():
    result = CliRunner().invoke(app, call.split())
    bug = result.exception is not None and not isinstance(result.exception, SystemExit)
    answers[name] = [result.exit_code, result.stderr, repr(result.exception) if bug else ""]
print(json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.parametrize("environment", list(RUNS))
@pytest.mark.timeout(600)
def test_every_command_runs_or_names_its_extra(environment: str, tmp_path: Path) -> None:
    blocked = [*OTHERS, *(ENGINE if environment != "engine" else ()), *(SERVE if environment != "serve" else ())]
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "still.png")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "replay.json").write_text("{}")
    calls = {"--help": "--help", "--version": "--version", "models": "models"}
    calls |= {name: call for name, (call, _) in COMMANDS.items()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(blocked), json.dumps(calls)],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'client' / 'src'}", "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "stillmotion-data" / "artifacts").exists(), "serve began, and could not serve"
    for name, (code, stderr, bug) in json.loads(done.stdout.splitlines()[-1]).items():
        assert not bug, (name, bug)
        if code == 0:
            continue
        assert stderr.startswith("error: ") and stderr.count("\n") == 1, (name, stderr)
        if "extra" in stderr and "-m pip install" in stderr:
            assert name not in RUNS[environment], (name, stderr)
            assert f"[{COMMANDS[name][1]}] extra" in stderr, (name, stderr)
            assert sys.executable in stderr
        else:
            assert name not in {"--help", "--version", "models"}, (name, stderr)

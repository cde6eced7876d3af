"""Without Ray, offline rendering says what to install."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.errors import install_command
from tests.conftest import ROOT
from tests.unit.serving.offline.support import GOOD

WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from cli.main import app; app()"


@pytest.mark.slow
def test_ray_missing_is_told_with_what_brings_it(tmp_path: Path) -> None:
    """Asked of an interpreter in which it cannot be imported."""
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps(GOOD))
    command = [sys.executable, "-c", WITHOUT_RAY, "batch", str(manifest), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    told = f"error: offline rendering needs the [batch] extra: {install_command('batch')}\n"
    assert (done.returncode, done.stderr) == (1, told)

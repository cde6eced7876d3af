"""What the gateway may import of the engine brings no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["", ".protocol", ".settings", ".policy", ".stats", ".profile"])
def test_brings_no_torch(root: Path, name: str) -> None:
    code = f"import sys, serving.engine{name}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)

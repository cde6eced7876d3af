"""What importing a part brings with it, asked of a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "diffusers", "transformers"}
OURS = {"model", "training", "export", "serving", "cli"}


def imported_by(statement: str, root: Path) -> set[str]:
    """The top-level packages a fresh interpreter holds after the statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_gateway_and_what_it_reads_bring_no_torch(root: Path) -> None:
    read = "model, model.tasks, model.shapes, model.params, model.errors, model.catalog"
    assert not imported_by(f"import {read}, serving.gateway, serving.gateway.app", root) & HEAVY


def test_the_command_line_loads_the_rest_lazily(root: Path) -> None:
    brought = imported_by("import cli.main", root)
    assert not brought & (HEAVY | {"fastapi", "sqlalchemy", "cv2"})
    assert not brought & {"training", "export", "serving"}


@pytest.mark.slow
def test_reading_a_manifest_brings_neither_torch_nor_ray(root: Path) -> None:
    assert not imported_by("import serving.offline, serving.offline.manifest", root) & (HEAVY | {"ray", "pyarrow"})


def test_the_sdk_stands_alone(root: Path) -> None:
    assert not imported_by("import stillmotion", root) & (OURS | HEAVY | {"numpy", "PIL", "fastapi"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "others"), [("training", {"serving", "export"}), ("export", {"serving", "training"})]
)
def test_parts_do_not_bring_each_other(module: str, others: set[str], root: Path) -> None:
    assert not imported_by(f"import {module}", root) & others

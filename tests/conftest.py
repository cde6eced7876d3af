"""What every test shares: shapes checked where `model` declares them, long files first, no GPU tests without a GPU."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import httpcore2
import pytest
import typer.testing
from hypothesis import settings
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]


def _modules_with_shapes() -> list[str]:
    """The modules of `model` whose annotations have shapes; the types of the others are left to mypy.

    With beartype on every module, importing `model.checkpoint` takes a worker 28 processor seconds in place of 10.
    """
    paths = [path for path in (ROOT / "model").rglob("*.py") if "from jaxtyping import" in path.read_text("utf-8")]
    names = [path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__") for path in paths]
    return sorted(name.replace("/", ".") for name in names)


install_import_hook(_modules_with_shapes(), "beartype.beartype")

# Every HTTP client reads the system's certificates, a tenth of a second each; no test needs its own reading of them.
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)

# Typer makes the commands from their signatures anew for each call, a tenth of a second; they are always the same.
typer.testing._get_command = functools.cache(typer.testing._get_command)

if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported: no GPU, so no compiled kernel

# A busy machine is no failure; pytest-timeout bounds a test that hangs.
settings.register_profile("stillmotion", deadline=None)
settings.load_profile("stillmotion")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's folder."""
    return ROOT


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    """A test that leaves a variable of ours behind would change what later tests of its worker see."""
    before = _own_variables()
    yield
    after = _own_variables()
    assert after == before, f"left in the environment: {sorted(set(after.items()) ^ set(before.items()))}"


def _own_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("STILLMOTION_", "XDG_", "HF_"))}


def pytest_collection_finish() -> None:
    """What was imported stays: a full garbage collection need not walk it, which takes half a second with torch."""
    gc.collect()
    gc.freeze()


LONG_FIRST = (
    "tests/integration/test_overfit.py",
    "tests/e2e/",
    "tests/integration/test_export.py",
    "tests/integration/test_training_road.py",
    "tests/integration/",
    "tests/unit/training/test_",
    "tests/unit/cli/",
    "tests/unit/benchmarks/",
    "tests/unit/export/",
    "tests/unit/training/",
    "tests/contract/",
)
"""Files and folders that take long; workers take files in this order, so that none is left with one at the end."""


def _turn(item: pytest.Item) -> int:
    return next((turn for turn, folder in enumerate(LONG_FIRST) if item.nodeid.startswith(folder)), len(LONG_FIRST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))

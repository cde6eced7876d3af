"""What callers build on, written down: a change here is a change of the public surface, to be told in CHANGELOG.md."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import stillmotion

import model.errors
from model.errors import StillmotionError
from model.tasks import TASKS

ERROR_CODES = {
    "StillmotionError": "internal_error",
    "InvalidRequest": "invalid_value",
    "UnreadableImage": "unreadable_image",
    "ImageTooLarge": "image_too_large",
    "CheckpointError": "bad_checkpoint",
    "DataError": "bad_data",
    "MissingExtra": "missing_extra",
    "GenerationFailed": "generation_failed",
    "OutOfMemory": "out_of_memory",
    "StorageFull": "storage_full",
    "Cancelled": "cancelled",
}


def test_error_codes() -> None:
    kinds = [kind for kind in vars(model.errors).values() if isinstance(kind, type)]
    assert {kind.__name__: kind.code for kind in kinds if issubclass(kind, StillmotionError)} == ERROR_CODES


def test_the_sdk_offers_what_it_lists() -> None:
    assert {"Client", "AsyncClient", "Job", "JobEvent", "StillmotionError", "RateLimited"} <= set(stillmotion.__all__)
    assert all(hasattr(stillmotion, name) for name in stillmotion.__all__)


def test_tasks() -> None:
    assert set(TASKS) == {"image-to-video", "text-to-video", "frame-interpolation", "multi-view"}


def test_both_distributions_have_one_version() -> None:
    assert version("stillmotion-server") == version("stillmotion") == stillmotion.__version__


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="stillmotion")
    assert callable(command.load())


def test_every_extra_that_an_error_can_name_exists(root: Path) -> None:
    extras = set(tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = set()
    for package in ("model", "training", "export", "serving", "cli"):
        for path in (root / package).rglob("*.py"):
            named |= set(re.findall(r'MissingExtra\([^)]*,\s*"(\w+)"\)', path.read_text()))
    assert named
    assert named <= extras


def test_constraints_pin_every_package_once_and_torch_at_the_tested_version(root: Path) -> None:
    lines = (root / "constraints.txt").read_text().splitlines()
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines
    assert "opencv-python" not in names

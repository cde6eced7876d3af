"""What callers build on, written down: a change here is a change of the public surface, to be told in CHANGELOG.md."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import get_args

import stillmotion
from stillmotion import types

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

CLIENT_METHODS = {
    *("generate", "submit", "subscribe", "text_to_video", "frame_interpolation", "multi_view", "extend"),
    *("get", "poll", "stream_events", "cancel", "delete", "list", "models", "content", "download_to", "close"),
    *("upload", "create_batch", "get_batch", "poll_batch", "cancel_batch", "batch_results"),
}


def test_error_codes() -> None:
    kinds = [kind for kind in vars(model.errors).values() if isinstance(kind, type)]
    assert {kind.__name__: kind.code for kind in kinds if issubclass(kind, StillmotionError)} == ERROR_CODES


def test_the_sdk_offers_what_it_lists() -> None:
    assert {"Client", "AsyncClient", "Job", "JobEvent", "Upload", "StillmotionError", "RateLimited"} <= set(
        stillmotion.__all__
    )
    assert all(hasattr(stillmotion, name) for name in stillmotion.__all__)


def test_both_clients_have_these_methods() -> None:
    for client in (stillmotion.Client, stillmotion.AsyncClient):
        assert {name for name in vars(client) if not name.startswith("_")} == CLIENT_METHODS
    assert {"Batch", "BatchLine", "BatchResult", "BatchTimeout", "LoraInfo", "Preview", "batch_line"} <= set(
        stillmotion.__all__
    )


def test_a_job_tells_of_itself_by_these_events_and_files() -> None:
    events = get_args(types.JobEvent.model_fields["event"].annotation)
    assert set(events) == {"queued", "phase", "step", "preview", "decode", *types.TERMINAL_STATUSES}
    assert set(get_args(types.Variant)) == {"video", "thumbnail", "frames", "manifest", "preview"}


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

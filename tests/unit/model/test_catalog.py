"""How checkpoints are named and found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model.errors import CheckpointError
from model.presets import preset
from model.sources.source import find
from model.tasks import task
from model.testing import build_random


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "my-own"
    build_random(path, preset("tiny"), task("image-to-video"))
    return path


def test_a_folder_is_named_by_its_last_part_whatever_its_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(str(folder)).name == "my-own"
    monkeypatch.chdir(folder)
    assert find(".").name == "my-own"
    assert find("../my-own").name == "my-own"
    copy = find(str(shutil.copytree(folder, tmp_path / "copy")))
    assert (copy.name, copy.version) == ("copy", find(str(folder)).version)


def test_what_is_nowhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model is called"):
        find("nothing-such")
    with pytest.raises(CheckpointError, match=r"it has no model_index\.json"):
        find(str(tmp_path))

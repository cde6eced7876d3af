"""Versions in a repository: whole or not at all, counted up, kept, rolled back."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from export.repository import Installed, install, installed, roll_back
from export.triton_config import CONFIG, Instances, check_config, instances_of
from model.errors import CheckpointError, InvalidRequest, StorageFull
from model.export_manifest import MANIFEST, served_version


def version(content: str) -> Callable[[Path], None]:
    """Writes a version that holds `content`."""

    def fill(folder: Path) -> None:
        (folder / "onnx").mkdir()
        (folder / "onnx" / "unet.onnx").write_text(content)
        (folder / MANIFEST).write_text("{}")

    return fill


def tree(folder: Path) -> set[str]:
    """Every path below the folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_the_next_version_is_served_beside_the_older(tmp_path: Path) -> None:
    first = install(tmp_path, "mini", version("one"))
    second = install(tmp_path, "mini", version("two"), warm_up={"request": b"{}"})
    assert first == Installed(tmp_path / "mini", (1,), 1, {"stable": 1})
    assert second == Installed(tmp_path / "mini", (1, 2), 2, {"stable": 2, "previous": 1})
    assert served_version(tmp_path / "mini") == tmp_path / "mini" / "2"
    assert (tmp_path / "mini" / "1" / "onnx" / "unet.onnx").read_text() == "one"
    assert "TritonPythonModel" in (tmp_path / "mini" / "2" / "model.py").read_text()
    assert (tmp_path / "mini" / "warmup" / "request").read_bytes().endswith(b"{}")
    assert not [path for path in tree(tmp_path) if ".part" in path]


def test_instances_are_one_a_gpu_until_the_operator_names_others_which_later_versions_keep(tmp_path: Path) -> None:
    def now() -> Instances:
        return instances_of(check_config(config.read_text()))

    config = install(tmp_path, "mini", version("one")).folder / CONFIG
    assert now() == Instances("KIND_AUTO", 1, ())
    config.write_text(config.read_text().replace("count: 1", "count: 1\n  gpus: 0\n  gpus: 2"))
    assert now() == Instances("KIND_AUTO", 1, (0, 2))
    install(tmp_path, "mini", version("two"))
    assert now() == Instances("KIND_AUTO", 1, (0, 2))
    roll_back(tmp_path / "mini")
    assert now() == Instances("KIND_AUTO", 1, (0, 2))
    install(tmp_path, "mini", version("three"), instances=Instances("KIND_CPU", 2))
    assert now() == Instances("KIND_CPU", 2)


def test_older_versions_are_kept_as_many_as_asked(tmp_path: Path) -> None:
    for count in range(5):
        now = install(tmp_path, "mini", version(str(count)), keep=3)
    assert now.versions == (3, 4, 5)
    assert install(tmp_path, "mini", version("x"), keep=1).versions == (5, 6)  # the served and the one before


def test_rolling_back_serves_the_version_before_and_keeps_the_rest(tmp_path: Path) -> None:
    for count in range(3):
        install(
            tmp_path,
            "mini",
            version(str(count)),
            parameters={"backend": "onnx"},
            warm_up={"request": b"...."},
            instances=Instances("KIND_CPU", 2),
        )
    back = roll_back(tmp_path / "mini")
    assert back == Installed(tmp_path / "mini", (1, 2, 3), 2, {"stable": 2, "previous": 3})
    config = check_config((tmp_path / "mini" / "config.pbtxt").read_text())
    assert config.parameters["backend"].string_value == "onnx"
    assert config.model_warmup[0].inputs["request"].input_data_file == "request"
    assert instances_of(config) == Instances("KIND_CPU", 2)
    assert roll_back(tmp_path / "mini").served == 1
    with pytest.raises(CheckpointError, match="no version before 1"):
        roll_back(tmp_path / "mini")
    assert install(tmp_path, "mini", version("new")).served == 4


def test_a_disk_that_fills_half_way_installs_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        version("half")(folder)
        (folder / "onnx" / "data").symlink_to("/dev/full")
        (folder / "onnx" / "data").write_text("weights")  # the kernel's own ENOSPC

    with pytest.raises(StorageFull, match="nothing was installed"):
        install(tmp_path, "mini", fill)
    assert tree(tmp_path) == set()
    install(tmp_path, "mini", version("one"))
    before = tree(tmp_path), (tmp_path / "mini" / "config.pbtxt").read_text()
    with pytest.raises(StorageFull):
        install(tmp_path, "mini", fill)
    assert (tree(tmp_path), (tmp_path / "mini" / "config.pbtxt").read_text()) == before


def test_whatever_goes_wrong_installs_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        version("half")(folder)
        raise OSError(errno.EIO, "the disk is broken")

    with pytest.raises(OSError, match="broken"):
        install(tmp_path, "mini", fill)
    with pytest.raises(CheckpointError, match=r"neither export\.json nor a checkpoint"):
        install(tmp_path, "mini", lambda folder: None)
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="no name for a model folder"):
        install(tmp_path, name, version("x"))


def test_a_folder_that_is_no_repository_s_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.pbtxt"):
        installed(tmp_path)
    (tmp_path / "config.pbtxt").write_text("version_policy { specific { versions: [9] } }")
    with pytest.raises(CheckpointError, match="names no version that is installed"):
        installed(tmp_path)

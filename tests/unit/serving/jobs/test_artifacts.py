"""Files of jobs: whole or absent, whatever goes wrong while they are written."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from model.errors import StorageFull
from serving.jobs.artifacts import Artifacts


class Failing(LocalFileSystem):  # type: ignore[misc]
    """Writes half of a file, then fails."""

    cachable = False
    number = errno.ENOSPC

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value[: len(value) // 2], mode, **options)
        raise OSError(self.number, "the disk says no")


class Unrenamable(LocalFileSystem):  # type: ignore[misc]
    """Writes, but cannot rename."""

    cachable = False

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        raise OSError(errno.EDQUOT, "quota exceeded")


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_write_read_pieces_remove(tmp_path: Path) -> None:
    artifacts = Artifacts.open(str(tmp_path / "deep" / "folder"))
    data = bytes(range(256)) * 3000
    stored = artifacts.write("job_1", "video.mp4", data, "video/mp4")
    assert (stored.bytes, stored.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert below(tmp_path) == ["deep/folder/job_1/video.mp4"]
    assert artifacts.read("job_1", "video.mp4") == data
    assert b"".join(artifacts.pieces("job_1", "video.mp4", 0, len(data))) == data
    assert artifacts.exists("job_1", "video.mp4")
    artifacts.write("job_1", "video.mp4", b"new", "video/mp4")
    assert artifacts.read("job_1", "video.mp4") == b"new"
    artifacts.remove("job_1")
    artifacts.remove("job_1")
    assert below(tmp_path) == []
    assert not artifacts.exists("job_1", "video.mp4")


@pytest.mark.parametrize("disk", [Failing, Unrenamable])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, disk: type[LocalFileSystem]) -> None:
    artifacts = Artifacts(disk(), str(tmp_path))
    with pytest.raises(StorageFull, match=r"video\.mp4.*1000 bytes"):
        artifacts.write("job_1", "video.mp4", bytes(1000), "video/mp4")
    assert below(tmp_path) == []


def test_another_error_is_not_called_a_full_disk(tmp_path: Path) -> None:
    disk = Failing()
    disk.number = errno.EIO
    with pytest.raises(OSError, match="says no"):
        Artifacts(disk, str(tmp_path)).write("job_1", "video.mp4", bytes(10), "video/mp4")
    assert below(tmp_path) == []


def test_the_old_file_survives_a_failed_overwrite(tmp_path: Path) -> None:
    Artifacts.open(str(tmp_path)).write("job_1", "video.mp4", b"old", "video/mp4")
    with pytest.raises(StorageFull):
        Artifacts(Failing(), str(tmp_path)).write("job_1", "video.mp4", b"newer", "video/mp4")
    assert Artifacts.open(str(tmp_path)).read("job_1", "video.mp4") == b"old"


def test_sweep_removes_strangers_and_unfinished_files_only(tmp_path: Path) -> None:
    artifacts = Artifacts.open(str(tmp_path))
    for job_id in ("job_known", "job_gone"):
        artifacts.write(job_id, "input.png", b"x", "image/png")
    (tmp_path / "job_known" / ".video.mp4.0.part").write_bytes(b"half")
    assert artifacts.sweep({"job_known", "job_without_files"}, older_than_s=3600) == []
    assert artifacts.sweep({"job_known", "job_without_files"}, older_than_s=0) == ["job_gone"]
    assert below(tmp_path) == ["job_known/input.png"]


def test_an_object_store_works_the_same() -> None:
    artifacts = Artifacts(MemoryFileSystem(), "/bucket/prefix")
    artifacts.write("job_1", "a", b"0123456789", "x/y")
    assert b"".join(artifacts.pieces("job_1", "a", 2, 5)) == b"234"
    assert artifacts.sweep(set(), older_than_s=0) == ["job_1"]
    assert not artifacts.exists("job_1", "a")


@given(data=st.binary(min_size=1, max_size=300), cut=st.data())
def test_pieces_are_a_slice(data: bytes, cut: st.DataObject) -> None:
    artifacts = Artifacts(MemoryFileSystem(), "/slices")
    artifacts.write("job", "a", data, "x/y")
    start = cut.draw(st.integers(0, len(data)))
    stop = cut.draw(st.integers(start, len(data)))
    assert b"".join(artifacts.pieces("job", "a", start, stop)) == data[start:stop]


def test_sweep_leaves_a_folder_whose_first_file_is_being_written(tmp_path: Path) -> None:
    artifacts = Artifacts.open(str(tmp_path))
    (tmp_path / "job_new").mkdir()
    assert artifacts.sweep(set(), older_than_s=3600) == []
    assert artifacts.sweep(set(), older_than_s=0) == ["job_new"]

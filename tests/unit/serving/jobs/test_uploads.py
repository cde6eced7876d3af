"""Uploads in the store: their time, their owner's room, and files that come and go beside their rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.media.image import DEFAULT_LIMITS
from serving.jobs.artifacts import Artifacts
from serving.jobs.database import Database
from serving.jobs.errors import UploadNotFound, UploadsFull
from serving.jobs.uploads import UploadStore, UploadTerms

NOW = 1_000_000.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uploads(tmp_path: Path, clock: Clock) -> Iterator[UploadStore]:
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    yield UploadStore(database, Artifacts.open(str(tmp_path / "a")), clock, UploadTerms(100.0, 30, 60))
    database.close()


def send(uploads: UploadStore, data: bytes, owner: str = "") -> tuple[str, bool]:
    name, file = uploads.incoming()
    file.write(data)
    upload, is_new = uploads.add(owner, name, file.finish(), file.size)
    assert upload.id == f"upload_{hashlib.sha256(data).hexdigest()}"
    return upload.id, is_new


def files(tmp_path: Path) -> int:
    return len(list((tmp_path / "a" / "uploads").iterdir()))


def test_its_time_begins_anew_when_it_comes_again(uploads: UploadStore, clock: Clock, tmp_path: Path) -> None:
    upload, is_new = send(uploads, b"one")
    assert is_new
    clock.now = NOW + 60
    assert send(uploads, b"one") == (upload, False)
    clock.now = NOW + 120
    assert uploads.expire() == []
    assert uploads.read("", upload, DEFAULT_LIMITS) == b"one"
    clock.now = NOW + 160
    with pytest.raises(UploadNotFound):
        uploads.read("", upload, DEFAULT_LIMITS)
    assert uploads.expire() == [upload]
    assert files(tmp_path) == 0


def test_hundreds_expire_in_one_sweep(uploads: UploadStore, clock: Clock, tmp_path: Path) -> None:
    sent = {send(uploads, bytes([number]), owner=str(number // 20))[0] for number in range(120)}
    clock.now = NOW + 100
    assert set(uploads.expire()) == sent
    assert files(tmp_path) == 0


def test_a_lost_file_is_healed_by_sending_it_again(uploads: UploadStore, tmp_path: Path) -> None:
    upload, _ = send(uploads, b"one")
    (path,) = (tmp_path / "a" / "uploads").iterdir()
    path.unlink()
    assert uploads.get("", upload).status == "waiting"
    assert send(uploads, b"one") == (upload, True)
    assert uploads.read("", upload, DEFAULT_LIMITS) == b"one"


def test_each_owner_has_room_of_their_own(uploads: UploadStore, clock: Clock, tmp_path: Path) -> None:
    send(uploads, bytes(20), "a")
    with pytest.raises(UploadsFull) as caught:
        send(uploads, bytes(range(20)), "a")
    assert caught.value.retry_after_s == 100
    assert files(tmp_path) == 1
    send(uploads, bytes(20), "a")  # the same takes no more
    other, _ = send(uploads, bytes(20), "b")
    assert files(tmp_path) == 2
    uploads.remove("b", other)
    assert uploads.get("a", other).status == "stored"
    with pytest.raises(UploadNotFound):
        uploads.remove("b", other)


def test_only_files_that_no_row_names_are_swept(uploads: UploadStore, tmp_path: Path) -> None:
    upload, _ = send(uploads, b"one")
    name, broken = uploads.incoming()
    broken.write(b"half")
    broken.finish()
    assert uploads.sweep() == [], "young ones may be about to be named"
    artifacts = Artifacts.open(str(tmp_path / "a"))
    named = {path.name for path in (tmp_path / "a" / "uploads").iterdir()} - {name}
    assert artifacts.sweep_files("uploads", named, older_than_s=0) == [name]
    assert uploads.get("", upload).status == "stored"
    artifacts.write("job_1", "video.mp4", b"x", "video/mp4")
    assert artifacts.sweep({"job_1", "uploads"}, older_than_s=0) == []
    assert artifacts.sweep_files("nothing", set(), older_than_s=0) == []


def test_what_is_no_id_is_not_found(uploads: UploadStore) -> None:
    for text in ("", "upload_", "job_1", "upload_\0", f"upload_{'A' * 64}", f"upload_{'0' * 64}\n"):
        for call in (uploads.get, uploads.remove):
            with pytest.raises(UploadNotFound):
                call("", text)

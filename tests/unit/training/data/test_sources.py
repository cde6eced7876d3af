"""The film, copied out of the cache: whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import DataError
from training.data import sources


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    kept = tmp_path / "cache" / "bbb.mp4"
    kept.parent.mkdir()
    kept.write_bytes(b"film" * 1000)
    monkeypatch.setattr(sources, "film_path", lambda: kept)
    return kept.read_bytes()


def test_the_film_is_copied_into_a_new_folder(cached: bytes, tmp_path: Path) -> None:
    sources.copy_film(tmp_path / "new" / "film.mp4")
    assert (tmp_path / "new" / "film.mp4").read_bytes() == cached
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.mp4"]


def test_a_file_in_the_way_is_told_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="name another file with --out"):
        sources.copy_film(tmp_path / "file" / "film.mp4")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="--out"):
        sources.copy_film(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "file", "folder"]

"""Files that are whole or absent, and records that are made once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from serving.offline.output import Output
from tests.unit.serving.offline.s3_support import environment, s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(url).items():
            patch.setenv(name, value)
        yield "s3://films"


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    """On a disk, on a filesystem that only fsspec knows, and on S3."""
    if request.param == "s3":
        return Output(f"{request.getfixturevalue('s3')}/{request.node.name}")
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return Output("memory://out")
    return Output(str(tmp_path / "out"))


def test_files_are_written_read_replaced_and_removed(output: Output) -> None:
    assert output.get("videos/a.mp4") is None
    assert list(output.names("videos")) == []
    output.put("videos/a.mp4", b"one")
    output.put("videos/a.mp4", b"two")
    assert output.get("videos/a.mp4") == b"two"
    assert list(output.names("videos")) == ["a"]
    output.remove("videos/a.mp4")
    output.remove("videos/a.mp4")
    assert output.get("videos/a.mp4") is None


def test_a_file_from_the_disk_is_put_in_place(output: Output, tmp_path: Path) -> None:
    source = tmp_path / "table"
    for data in (b"one" * 1_000_000, b"two"):
        source.write_bytes(data)
        output.put_file("results.jsonl", source)
        assert output.get("results.jsonl") == data


def test_a_record_is_made_once(output: Output) -> None:
    assert output.put_once("records/a.json", b"first")
    assert not output.put_once("records/a.json", b"second")
    assert output.get("records/a.json") == b"first"


def test_of_many_at_once_one_makes_the_record(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            name = f"records/{number}.json"
            made = list(pool.map(lambda data, name=name: output.put_once(name, data), [b"%d" % n for n in range(8)]))
            assert sum(made) == 1
            assert output.get(name) == b"%d" % made.index(True)


def test_nothing_but_whole_files_is_seen_and_old_parts_are_swept(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    output.put("videos/a.mp4", b"one")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.mp4"]
    old, young = tmp_path / ".parts" / "b.mp4.1", tmp_path / ".parts" / "c.mp4.1"
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    output.sweep()
    assert [path.name for path in (tmp_path / ".parts").iterdir()] == ["c.mp4.1"]

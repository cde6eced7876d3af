"""Manifests of every kind, streamed, with the rows that are meant."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError, InvalidRequest, install_command
from serving.offline.manifest import DuplicateCheck, NameSet, Portion, in_packets, open_render_list, read_lines
from tests.conftest import ROOT
from tests.unit.serving.offline.support import BAD_ROWS, GOOD, reading, stills, write_bad_manifest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [{"image": f"{number}.jpg", "seed": number, "num_inference_steps": 2} for number in range(1, 8)]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"manifest.{kind}"
    if kind == "jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS))
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, list(ROWS[0]))
            table.writeheader()
            table.writerows(ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_kind_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    manifest = open_render_list(str(write(tmp_path, kind)))
    assert manifest.base == str(tmp_path)
    assert manifest.count() == len(ROWS)
    lines = list(read_lines(manifest, Portion(), reading(manifest.base)))
    assert [(line.row, line.code) for line in lines] == [(number, "") for number in range(1, 8)]
    expected = write(tmp_path, "jsonl")
    same = read_lines(open_render_list(str(expected)), Portion(), reading(str(tmp_path)))
    assert [line.id for line in lines] == [line.id for line in same]


def test_a_folder_of_pictures_is_a_manifest(tmp_path: Path) -> None:
    stills(tmp_path / "in" / "below")
    manifest = open_render_list(str(tmp_path / "in"))
    rows = list(manifest.rows())
    assert manifest.count() == len(rows) == 7  # the svg is no picture by its name
    assert rows[0].values == {"image": str(tmp_path / "in" / "below" / "a.jpg")}


@given(rows=st.integers(0, 40), shards=st.integers(1, 7), limit=st.none() | st.integers(1, 9))
def test_shards_share_out_every_row_once(rows: int, shards: int, limit: int | None) -> None:
    numbers = range(1, rows + 1)
    taken = []
    for shard in range(1, shards + 1):
        portion = Portion(shard, shards, limit)
        mine = list(islice(islice(numbers, shard - 1, None, shards), limit))
        assert len(mine) == portion.count(rows)
        taken += mine
    if limit is None:
        assert sorted(taken) == list(numbers)


def test_shard_and_limit_choose_rows(tmp_path: Path) -> None:
    manifest = open_render_list(str(write(tmp_path, "csv")))
    assert [row.number for row in manifest.rows(Portion.of("2/3", None))] == [2, 5]
    assert [row.number for row in manifest.rows(Portion.of("1/2", 3))] == [1, 3, 5]
    for bad in ("0/3", "4/3", "1/0", "x", "1-3"):
        with pytest.raises(InvalidRequest):
            Portion.of(bad, None)


def test_what_is_no_manifest_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "broken.parquet").write_text("a")
    (tmp_path / "twice.csv").write_text("image,image\na,b\n")
    with pytest.raises(DataError, match="no manifest"):
        open_render_list(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"no \.jsonl"):
        open_render_list(str(tmp_path / "notes.txt"))
    for name in ("broken.parquet", "twice.csv"):
        with pytest.raises(DataError):
            list(open_render_list(str(tmp_path / name)).rows())
    with pytest.raises(InvalidRequest, match="nosuch"):
        open_render_list("nosuch://bucket/manifest.jsonl")


@pytest.mark.slow
def test_a_protocol_without_its_package_is_told_with_what_brings_it(tmp_path: Path) -> None:
    """Asked of an interpreter in which s3fs and dropbox's package cannot be imported."""
    code = (
        "import sys; sys.modules['s3fs'] = sys.modules['dropboxdrivefs'] = None\n"
        "from serving.offline.manifest import filesystem_of\n"
        "for url in ('s3://bucket/m.jsonl', 'dropbox://m.jsonl'):\n"
        "    try:\n        filesystem_of(url)\n"
        "    except Exception as error:\n        print(type(error).__name__, error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    first, second = told.splitlines()
    assert first == f"MissingExtra s3:// needs the [s3] extra: {install_command('s3')}"
    assert second.startswith("InvalidRequest dropbox://m.jsonl")


@pytest.mark.parametrize(
    ("name", "data", "cause"),
    [
        ("m.csv", b"image;seed\r\na.jpg;1\r\n", "by semicolons"),
        ("m.csv", b"image\tseed\na.jpg\t1\n", "by tabs"),
        ("m.csv", "image,seed\na.jpg,1\n".encode("utf-16"), "UTF-16"),
        ("m.csv", "image,seed\na.jpg,1\n".encode("utf-16-be"), "UTF-16"),
        ("m.jsonl", '{"image": "a.jpg"}'.encode("utf-16-le"), "UTF-16"),
    ],
)
def test_what_spreadsheets_save_is_named_for_what_it_is(tmp_path: Path, name: str, data: bytes, cause: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=cause) as caught:
        list(open_render_list(str(tmp_path / name)).rows())
    assert "save it as" in caught.value.message


def test_every_bad_row_is_told_with_its_column(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    rows = write_bad_manifest(path)
    lines = list(read_lines(open_render_list(str(path)), Portion(), reading(str(tmp_path))))
    assert len(lines) == rows
    in_pictures = {"none.jpg", "half.jpg", "text.jpg", "two.gif", "small.png"}  # told when they are opened
    for line, (text, column) in zip(lines[1:-1], BAD_ROWS, strict=True):
        if not any(name in text for name in in_pictures):
            assert line.code, text
            assert line.column == column, text
    assert [line.code for line in (lines[0], lines[-1])] == ["", ""]


def test_a_repeated_row_is_told_with_the_first_ones_number(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join([json.dumps(GOOD), json.dumps({**GOOD, "seed": 1}), json.dumps(GOOD)]))
    lines = list(read_lines(open_render_list(str(path)), Portion(), reading()))
    assert [line.code for line in lines] == ["", "", DuplicateCheck.CODE]
    assert "row 1" in lines[2].message
    assert len({line.id for line in lines}) == 3


def test_a_csv_row_with_too_many_cells_is_a_fault_of_that_row(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image,seed\na.jpg,1\nb.jpg,2,3\nc.jpg\n")
    lines = list(read_lines(open_render_list(str(tmp_path / "m.csv")), Portion(), reading()))
    assert [line.code for line in lines] == ["", "malformed_row", ""]


def test_rows_that_no_reader_expects_are_faults_and_the_others_go_on(tmp_path: Path) -> None:
    deep, half = "[" * 100_000, r'{"image": "a.jpg", "\ud800": 1}'
    (tmp_path / "m.jsonl").write_text("\n".join([deep, half, r'{"image": "\ud800.jpg", "seed": 1}', json.dumps(GOOD)]))
    lines = list(read_lines(open_render_list(str(tmp_path / "m.jsonl")), Portion(), reading()))
    assert [bool(line.code) for line in lines] == [True, True, True, False]
    assert all(part.encode() is not None for line in lines for part in (line.text, line.message, line.column))
    (tmp_path / "m.csv").write_text(f"image,seed\na.jpg,1\n{'x' * 200_000},2\nb.jpg,3\n")
    lines = list(read_lines(open_render_list(str(tmp_path / "m.csv")), Portion(), reading()))
    assert [(line.row, line.code) for line in lines] == [(1, ""), (2, "malformed_row"), (3, "")]
    rows = [{"image": {"data": "no base64!"}, "seed": 1}, {"image": {"data": "aGVsbG8="}, "seed": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    lines = list(read_lines(open_render_list(str(tmp_path / "m.parquet")), Portion(), reading()))
    assert [(line.code, line.column) for line in lines] == [("invalid_value", "image"), ("", "")]


@given(st.sets(st.text(max_size=8), max_size=60), st.sets(st.text(max_size=8), max_size=60))
def test_names_is_a_set(there: set[str], asked: set[str]) -> None:
    names = NameSet(there)
    assert len(names) == len(there)
    assert {name for name in asked | there if name in names} == there


def test_complete_rows_come_many_to_a_packet_and_the_others_alone(tmp_path: Path) -> None:
    lines = list(read_lines(open_render_list(str(write(tmp_path, "jsonl"))), Portion(), reading()))
    done = NameSet([line.id for line in lines[:3] + lines[5:]])
    blocks = [[line.row for line in block] for block in in_packets(lines, done, 2)]
    assert sorted(map(sorted, blocks)) == [[1, 2], [3, 6], [4], [5], [7]]


@pytest.mark.slow
def test_reading_holds_no_more_of_a_long_manifest_than_of_a_short_one(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("w") as file:
        long = {"image": "a.jpg", "metadata": {"note": "x" * 400}}
        file.writelines(json.dumps({**long, "seed": number}) + "\n" for number in range(1_200))
    manifest = open_render_list(str(path))
    tracemalloc.start()
    try:
        peaks = []
        lines = read_lines(manifest, Portion(), reading())
        assert sum(1 for _ in islice(lines, 400)) == 400  # what is loaded once
        for _ in range(2):
            tracemalloc.reset_peak()
            assert sum(1 for _ in islice(lines, 400)) == 400
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000  # 400 rows kept would be more

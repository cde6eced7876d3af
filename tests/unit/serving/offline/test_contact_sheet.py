"""What a finished run leaves: tables in the manifest's order, and pages to look through."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from model.errors import InvalidRequest
from serving.offline.contact_sheet import write_pages
from serving.offline.output import Output
from serving.offline.result_log import Result, ResultLog, failure, parse

pq = pytest.importorskip("pyarrow.parquet")

from serving.offline.tables import SCHEMA, packed, unpacked, write_tables  # noqa: E402 - it needs pyarrow


def completed(row: int, **changes: object) -> Result:
    """A row that was rendered."""
    values = {"video": f"videos/{row}.mp4", "thumbnail": f"thumbnails/{row}.jpg", "width": 96, "height": 64, **changes}
    return Result(row=row, id=str(row), status="completed", **values)  # type: ignore[arg-type]


class Found(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_record_is_read_back_as_it_was() -> None:
    result = completed(3, seed=2**63 - 1, denoise_s=0.25, degraded=True)
    assert parse(result.as_json()) == result
    assert parse(json.dumps({**json.loads(result.as_json()), "later": 1}).encode()) == result


def test_the_ledger_gives_results_in_order_and_counts_each_once() -> None:
    with ResultLog() as ledger:
        for row in (5, 1, 3, 1, 2, 4):
            ledger.add(completed(row) if row != 4 else failure(4, "x", InvalidRequest("no")))
        assert [[one.row for one in page] for page in ledger.pages(2)] == [[1, 2], [3, 4], [5]]
        assert (len(ledger), ledger.counts) == (5, {"completed": 4, "failed": 1})


def test_both_tables_hold_every_result(tmp_path: Path) -> None:
    results = [completed(1, seed=7), failure(2, "two", InvalidRequest("no fps", param="fps")), completed(3)]
    write_tables([results[:2], results[2:]], tmp_path / "r.jsonl", tmp_path / "r.parquet")
    assert [parse(line) for line in (tmp_path / "r.jsonl").read_bytes().splitlines()] == results
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.schema.equals(SCHEMA)
    assert [Result(**row) for row in table.to_pylist()] == results
    assert packed(results).num_rows == 1
    assert list(unpacked(packed(results))) == results


def test_pages_show_every_row_and_run_no_text_of_a_row(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    hostile = "<script>alert(1)</script>"
    with ResultLog() as ledger:
        for row in range(1, 1003):
            ledger.add(completed(row))
        ledger.add(completed(1003, params=json.dumps({"prompt": hostile})))
        ledger.add(failure(1004, "x", InvalidRequest(f"bad {hostile}", param="fps")))
        names = write_pages(ledger, output, "")
    assert names == ("index.html", "index-page-2.html", "index-page-3.html")
    pages = [Found((tmp_path / name).read_text()) for name in names]
    sources = [attrs["src"] for page in pages for tag, attrs in page.tags if tag == "video"]
    assert sources == [f"videos/{row}.mp4" for row in range(1, 1004)]
    assert [sum(tag == "script" for tag, _ in page.tags) for page in pages] == [1, 1, 1]
    assert pages[2].text.count(hostile) == 2
    assert "1003 videos, 1 failed" in pages[0].text
    assert "index-page-2.html" in [attrs.get("href") for _, attrs in pages[0].tags]
    assert any(attrs.get("poster") == "thumbnails/1.jpg" for _, attrs in pages[0].tags)


def test_a_run_without_rows_has_an_empty_page(tmp_path: Path) -> None:
    with ResultLog() as ledger:
        assert write_pages(ledger, Output(str(tmp_path)), "-1-of-2") == ("index-1-of-2.html",)
    assert "0 videos" in (tmp_path / "index-1-of-2.html").read_text()

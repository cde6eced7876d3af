"""The report: its counts against the filter's, pictures inside the page, and every source with its state."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from model.media.video import encode_video
from training.curation.charts import histogram, thumbnail
from training.curation.filter import THRESHOLDS
from training.curation.records import ClipRecord, ScoreRecord, SourceRecord
from training.curation.report import write_report
from training.curation.tables import write_table

pytest.importorskip("pyarrow")

FLOW = [0.0, 0.0, 0.5, 0.6, 0.7, 0.8]
TEXT: list[float | None] = [0.3, 0.0, 0.2, 0.0, None, 0.01]


class _Tables(HTMLParser):
    """The rows of every table of a page, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        self._inside = tag in ("td", "th")
        if self._inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "clips").mkdir()
    clips = []
    for index in range(len(FLOW)):
        name = f"{index:020x}"
        frames = np.full((4, 48, 64, 3), 30 * index, np.uint8)
        (folder / "clips" / f"{name}.mp4").write_bytes(encode_video(frames, 8, "mp4"))
        file = f"clips/{name}.mp4"
        times = (float(index), index + 0.5)
        clips.append(ClipRecord(name, "s", *times, 0, 0, 0, 0, file, "", 4, 64, 48, Fraction(8), "whole"))
    (folder / clips[2].file).write_bytes(b"broken since")
    write_table(folder / "clips.parquet", ClipRecord, clips)
    for name, column in {"flow_mean": FLOW, "text_area": TEXT}.items():
        rows = [
            ScoreRecord(clip.clip_id, name, value, None if value is not None else "not scored: dark", "t", "")
            for clip, value in zip(clips, column, strict=True)
        ]
        write_table(folder / "scores" / f"{name}.parquet", ScoreRecord, rows)
    good = SourceRecord("a.mp4", "s", 1, "mp4", "h264", "yuv420p", Fraction(8), 3.0, 24, 64, 48, 0, False, (0.0,), None)
    broken = dataclasses.replace(good, path="<b>.mp4", error="cut off after 3 bytes")
    write_table(folder / "sources.parquet", SourceRecord, [good, broken])
    thresholds = "[flow_mean]\nat_least = 0.1\n[text_area]\nat_most = 0.07\n[aesthetic]\ndrop_lowest_percent = 25\n"
    (folder / THRESHOLDS).write_text(thresholds)
    write_report(folder)
    return folder


def rows_of(folder: Path) -> dict[str, list[str]]:
    parser = _Tables()
    parser.feed((folder / "report.html").read_text())
    return {row[0]: row[1:] for row in parser.rows if row and len(row) >= 6}


def test_each_axis_is_told_alone_and_together(dataset: Path) -> None:
    rows = rows_of(dataset)
    assert rows["flow_mean"] == ["at least 0.1", "6", "2", "33.3%", "1"]
    assert rows["text_area"] == ["at most 0.07", "5", "2", "33.3%", "1"]
    assert rows["aesthetic"] == ["not the lowest 25%", "0", "not scored", "0.0%", "0"]
    assert rows["all together"] == ["", "", "3", "50.0%", ""]
    assert "<b>3 of 6 clips kept</b>: 1.5 s of 3.0 s" in (dataset / "report.html").read_text()


def test_examples_are_pictures_inside_the_page_and_a_broken_clip_is_told(dataset: Path) -> None:
    page = (dataset / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 4
    assert not re.search(r"(src|href)='(?!data:)", page)
    assert "cannot be decoded" in page


def test_a_thumbnail_plays_when_pointed_at(tmp_path: Path) -> None:
    """All eight frames of a clip are in it, in order."""
    frames = np.stack([np.full((48, 64, 3), 30 * index, np.uint8) for index in range(8)])
    (tmp_path / "clip.mp4").write_bytes(encode_video(frames, 8, "mp4"))
    still, moving = re.findall(r"data:image/\w+;base64,([^']+)", thumbnail(tmp_path / "clip.mp4", 8))
    with Image.open(io.BytesIO(base64.b64decode(moving))) as clip:
        levels = [np.asarray(one.convert("L"), float).mean() for one in ImageSequence.Iterator(clip)]
    assert np.allclose(levels, [30 * index for index in range(8)], atol=4)
    with Image.open(io.BytesIO(base64.b64decode(still))) as picture:
        assert np.asarray(picture.convert("L"), float).mean() == pytest.approx(120, abs=4)


def test_every_source_is_listed_and_its_name_is_escaped(dataset: Path) -> None:
    rows = rows_of(dataset)
    assert rows["a.mp4"][0] == "read"
    assert rows["<b>.mp4"][0] == "cut off after 3 bytes"
    assert "<b>.mp4" not in (dataset / "report.html").read_text()


def test_a_histograms_bars_add_up_to_the_clips_and_split_at_the_limit() -> None:
    values = np.linspace(0, 1, 401)
    bars = [(float(h), c) for h, c in re.findall(r"height='([\d.]+)' fill='(#\w+)'", histogram(values, 0.25, np.inf))]
    heights = {colour: sum(height for height, own in bars if own == colour) for _, colour in bars}
    dropped, kept = heights["#d9822b"], heights["#3b7dd8"]
    assert dropped / (dropped + kept) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("values", [[np.nan, np.nan], [2.0, 2.0, 2.0], [-1.0]])
def test_a_histogram_of_hardly_anything_is_drawn_all_the_same(values: list[float]) -> None:
    drawn = histogram(np.array(values), -np.inf, np.inf)
    assert "not scored" in drawn if np.isnan(values).all() else drawn.startswith("<svg")

"""The filter: what each rule drops, against plain Python, and its speed on a hundred thousand clips."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError, InvalidRequest
from training.curation.filter import (
    PUBLISHED,
    Rule,
    filter_dataset,
    load_scores,
    parse_rules,
    verdicts,
)

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

values = st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=40)


def write_dataset(folder: Path, scores: dict[str, list[float | None]], thresholds: str | None = None) -> list[str]:
    """A dataset's tables with one score table an axis, clips out of order."""
    count = len(next(iter(scores.values())))
    ids = [f"{index:020x}" for index in range(count)]
    (folder / "scores").mkdir(parents=True)
    pq.write_table(pa.table({"clip_id": ids[::-1]}), folder / "clips.parquet")
    for name, column in scores.items():
        table = pa.table({"clip_id": ids, "name": [name] * count, "value": pa.array(column, pa.float64())})
        pq.write_table(table, folder / "scores" / f"{name}.parquet")
    if thresholds is not None:
        (folder / "thresholds.toml").write_text(thresholds)
    return ids


@given(values, st.floats(-5, 5), st.floats(0, 5), st.sampled_from(["keep", "drop"]))
def test_fixed_limits_drop_what_lies_outside(
    column: list[float | None], low: float, width: float, unscored: str
) -> None:
    rule = Rule("axis", at_least=low, at_most=low + width, unscored=unscored)
    array = np.array([math.nan if value is None else value for value in column])
    expected = [unscored == "drop" if v is None else not low <= v <= low + width for v in column]
    assert rule.drops(array).tolist() == expected


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=60, unique=True), st.integers(0, 99))
def test_a_percentage_drops_no_more_than_it_says_and_the_lowest_first(column: list[float], percent: int) -> None:
    array = np.array(column)
    dropped = Rule("axis", drop_lowest_percent=percent).drops(array)
    assert dropped.sum() <= math.ceil(percent / 100 * len(column))
    assert dropped.sum() >= math.floor(percent / 100 * (len(column) - 1))
    assert not dropped.any() or array[dropped].max() <= array[~dropped].min()


def test_a_percentage_is_of_the_scored_clips_only() -> None:
    column = np.array([1.0, 2.0, 3.0, 4.0, *[math.nan] * 96])
    assert Rule("axis", drop_highest_percent=50).drops(column).nonzero()[0].tolist() == [2, 3]


def test_the_published_rules_parse() -> None:
    rules = {rule.axis: rule for rule in parse_rules(PUBLISHED)}
    assert rules["flow_mean"].drop_lowest_percent == 25
    assert rules["text_area"].at_most == 0.07
    assert rules["clip_similarity"].drop_lowest_percent == 50
    assert rules["aesthetic"].drop_lowest_percent == 25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[flow_mean]\nat_leest = 1", "at_least"),
        ("[flow_mean]", "no limit"),
        ("[flow_mean]\nat_least = 2\nat_most = 1", "nothing would be kept"),
        ("[flow_mean]\ndrop_lowest_percent = 60\ndrop_highest_percent = 40", "percentages"),
        ("[flow_mean]\ndrop_lowest_percent = -1", "percentages"),
        ("[flow_mean]\nat_most = true", "takes a number"),
        ('[flow_mean]\nunscored = "maybe"', "unscored"),
        ("flow_mean = 3", "takes"),
        ("[flow_mean", "not TOML"),
    ],
)
def test_a_wrong_thresholds_file_is_refused_with_the_axis(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        parse_rules(text)


def test_the_selection_names_every_axis_that_dropped_a_clip(tmp_path: Path) -> None:
    scores: dict[str, list[float | None]] = {"flow_mean": [0.0, 0.5, 0.0, None], "text_area": [0.2, 0.0, 0.0, 0.01]}
    thresholds = "[flow_mean]\nat_least = 0.1\n[text_area]\nat_most = 0.07\n[aesthetic]\ndrop_lowest_percent = 25"
    ids = write_dataset(tmp_path, scores, thresholds)
    filter_dataset(tmp_path)
    rows = pq.read_table(tmp_path / "selection.parquet").to_pylist()
    assert [row["clip_id"] for row in rows] == ids
    assert [row["kept"] for row in rows] == [False, True, False, True]
    assert [row["dropped_by"] for row in rows] == [["flow_mean", "text_area"], [], ["flow_mean"], []]


def test_a_dataset_without_thresholds_is_given_the_published_ones(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"text_area": [0.0, 0.5]})
    filter_dataset(tmp_path)
    assert (tmp_path / "thresholds.toml").read_text() == PUBLISHED
    assert pq.read_table(tmp_path / "selection.parquet")["kept"].to_pylist() == [True, False]


def test_a_dataset_without_rules_keeps_everything(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"text_area": [0.0, 0.5]}, "# nothing")
    filter_dataset(tmp_path)
    table = pq.read_table(tmp_path / "selection.parquet")
    assert table["kept"].to_pylist() == [True, True]
    assert table["dropped_by"].to_pylist() == [[], []]


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="curate"):
        load_scores(tmp_path)


def test_a_hundred_thousand_clips_are_filtered_again_in_less_than_five_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    axes = ("flow_mean", "text_area", "aesthetic", "clip_similarity", "near_duplicate", "sharpness")
    ids = write_dataset(tmp_path, {axis: rng.random(100_000).tolist() for axis in axes})
    filter_dataset(tmp_path)
    (tmp_path / "thresholds.toml").write_text("[flow_mean]\ndrop_lowest_percent = 10\n[text_area]\nat_most = 0.5")
    began = time.monotonic()
    filter_dataset(tmp_path)
    took = time.monotonic() - began
    kept = pq.read_table(tmp_path / "selection.parquet")["kept"].to_numpy(zero_copy_only=False)
    scores = load_scores(tmp_path)
    both = (scores.of("flow_mean") >= np.quantile(scores.of("flow_mean"), 0.1)) & (scores.of("text_area") <= 0.5)
    assert len(kept) == len(ids)
    assert np.array_equal(kept, both)
    assert took < 5
    assert set(verdicts(scores, parse_rules(PUBLISHED))) >= {"flow_mean", "text_area"}

"""The filter: which clips a dataset keeps, as a query over the stored scores. No video is read, so it runs in seconds.

thresholds.toml holds one table an axis (a score's name). An axis drops a clip on either side of a fixed value, or a
share of all clips that have the score:

    [flow_mean]
    drop_lowest_percent = 25      # of the clips that were scored
    [text_area]
    at_most = 0.07                # keep up to and with this value
    unscored = "drop"             # a clip without the score: "keep" (the default) or "drop"

Legend: N clips, A axes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import DataError, InvalidRequest, MissingExtra
from training.curation.tables import replace_file, write_text

Array = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

THRESHOLDS, SELECTION = "thresholds.toml", "selection.parquet"
PUBLISHED = """\
# What the filter keeps; edit and run `stillmotion curate filter DATASET` again: no video is read.
# An axis: at_least, at_most, drop_lowest_percent, drop_highest_percent, unscored = "keep" | "drop".
# An axis that nothing scored drops nothing.

[flow_mean]                 # short sides a second; the paper drops the stillest quarter
drop_lowest_percent = 25

[text_area]                 # the paper's rule: at most 7% of the picture is text
at_most = 0.07

[clip_similarity]           # needs CLIP weights and a captioner
drop_lowest_percent = 50

[aesthetic]                 # needs CLIP weights and an aesthetic head
drop_lowest_percent = 25

[near_duplicate]            # cosine with an earlier clip
at_most = 0.98
"""
"""What a dataset starts with: the paper's published rules, and one against copies."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one axis drops.

    Args:
        axis: the score's name.
        at_least, at_most: values outside are dropped.
        drop_lowest_percent, drop_highest_percent: of the clips that have the score; ties at the edge are kept.
        unscored: what happens to a clip without the score, `keep` or `drop`.

    Raises:
        InvalidRequest: no limit, one out of range, or limits that leave nothing.
    """

    axis: str
    at_least: float | None = None
    at_most: float | None = None
    drop_lowest_percent: float | None = None
    drop_highest_percent: float | None = None
    unscored: str = "keep"

    def __post_init__(self) -> None:
        limits = (self.at_least, self.at_most, self.drop_lowest_percent, self.drop_highest_percent)
        if all(limit is None for limit in limits) and self.unscored == "keep":
            raise InvalidRequest(f"[{self.axis}] sets no limit; take it out or give one", param=self.axis)
        if self.unscored not in ("keep", "drop"):
            raise InvalidRequest(f'[{self.axis}] unscored is "keep" or "drop", not {self.unscored!r}', param=self.axis)
        shares = [share for share in limits[2:] if share is not None]
        if any(not 0 <= share < 100 for share in shares) or sum(shares) >= 100:
            raise InvalidRequest(f"[{self.axis}] percentages are from 0 to below 100 together", param=self.axis)
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise InvalidRequest(f"[{self.axis}] at_least is above at_most: nothing would be kept", param=self.axis)

    def limits(self, values: Array) -> tuple[float, float]:
        """The lowest and highest value that is kept, given all clips' values [N] (NaN where there is none)."""
        scored = values[~np.isnan(values)]
        low = [-np.inf if self.at_least is None else self.at_least]
        high = [np.inf if self.at_most is None else self.at_most]
        if len(scored):
            if self.drop_lowest_percent:
                low.append(float(np.quantile(scored, self.drop_lowest_percent / 100)))
            if self.drop_highest_percent:
                high.append(float(np.quantile(scored, 1 - self.drop_highest_percent / 100)))
        return max(low), min(high)

    def drops(self, values: Array) -> Mask:
        """Which clips this axis drops, [N]."""
        low, high = self.limits(values)
        missing = np.isnan(values)
        outside = ~missing & ((values < low) | (values > high))
        return outside | missing if self.unscored == "drop" else outside


@dataclass(frozen=True, slots=True)
class Scores:
    """All clips' scores: ids [N] in order, and for each axis the values [N], NaN where not scored."""

    clip_ids: Sequence[str]
    values: dict[str, Array]

    def of(self, axis: str) -> Array:
        """An axis's values; all NaN for one that nothing scored."""
        return self.values.get(axis, np.full(len(self.clip_ids), np.nan))


def parse_rules(text: str) -> list[Rule]:
    """The rules of a thresholds file's text.

    Raises:
        InvalidRequest: not TOML, an unknown setting, or a value of the wrong kind.
    """
    known = {field.name for field in fields(Rule)} - {"axis"}
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"{THRESHOLDS} is not TOML: {error}", param="thresholds") from error
    rules: list[Rule] = []
    for axis, table in tables.items():
        if axis == "evidence":
            continue
        if not isinstance(table, dict) or set(table) - known:
            there = ", ".join(sorted(known))
            raise InvalidRequest(f"[{axis}] takes {there}; not {table!r}", param=axis)
        wrong = [
            k for k, v in table.items() if k != "unscored" and (isinstance(v, bool) or not isinstance(v, int | float))
        ]
        if wrong:
            raise InvalidRequest(f"[{axis}] {wrong[0]} takes a number, not {table[wrong[0]]!r}", param=axis)
        rules.append(Rule(axis, **table))
    return rules


def read_rules(folder: Path) -> list[Rule]:
    """A dataset's rules; a dataset without a thresholds file is given the published ones."""
    path = folder / THRESHOLDS
    if not path.exists():
        write_text(path, PUBLISHED)
    return parse_rules(path.read_text())


def load_scores(folder: Path) -> Scores:
    """Every score of a dataset folder, read from clips.parquet and scores/*.parquet.

    Raises:
        DataError: the folder holds no clips' table.
        MissingExtra: pyarrow is not installed.
    """
    _, pc, pq = _arrow()
    if not (folder / "clips.parquet").exists():
        raise DataError(f"{folder} is no curated dataset: make one with `stillmotion curate SOURCE --out {folder}`")
    ids = pc.unique(pq.read_table(folder / "clips.parquet", columns=["clip_id"])["clip_id"])
    ids = ids.take(pc.sort_indices(ids))
    values: dict[str, Array] = {}
    for path in sorted((folder / "scores").glob("*.parquet")):
        table = pq.read_table(path, columns=["clip_id", "name", "value"])
        for name in sorted(pc.unique(table["name"]).to_pylist()):
            rows = table.filter(pc.equal(table["name"], name))
            places = pc.index_in(rows["clip_id"], value_set=ids).to_numpy(zero_copy_only=False)
            found = rows["value"].to_numpy(zero_copy_only=False).astype(np.float64)
            known = ~np.isnan(places.astype(np.float64))
            column = values.setdefault(name, np.full(len(ids), np.nan))
            column[places[known].astype(np.intp)] = found[known]
    return Scores(ids.to_pylist(), values)


def verdicts(scores: Scores, rules: Sequence[Rule]) -> dict[str, Mask]:
    """For each rule's axis, which clips it drops, [N]."""
    return {rule.axis: rule.drops(scores.of(rule.axis)) for rule in rules}


def filter_dataset(folder: Path) -> None:
    """Write selection.parquet: clip_id, kept, and the axes that dropped it; sorted by clip_id.

    Raises:
        DataError: the folder holds no clips' table.
        InvalidRequest: its thresholds file cannot be read.
        MissingExtra: pyarrow is not installed.
    """
    pa, _, pq = _arrow()
    scores = load_scores(folder)
    dropped = verdicts(scores, read_rules(folder))
    names = np.array(list(dropped), dtype=object)
    masks = np.stack(list(dropped.values()), axis=1) if dropped else np.zeros((len(scores.clip_ids), 0), bool)
    offsets = np.concatenate([[0], np.cumsum(masks.sum(axis=1))]).astype(np.int32)
    axes = pa.array([str(one) for one in names[np.nonzero(masks)[1]]] if masks.size else [], pa.string())
    table = pa.table(
        {
            "clip_id": pa.array(scores.clip_ids, pa.string()),
            "kept": pa.array(~masks.any(axis=1)),
            "dropped_by": pa.ListArray.from_arrays(pa.array(offsets), axes),
        }
    )
    replace_file(folder / SELECTION, lambda partial: pq.write_table(table, partial, compression="zstd"))


def _arrow() -> tuple[Any, Any, Any]:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("filtering a curated dataset", "curate") from None
    return pyarrow, pyarrow.compute, pyarrow.parquet

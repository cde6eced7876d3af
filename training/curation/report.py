"""The report of a curated dataset: one page, with everything inside, on what was dropped and why.

How many clips each axis drops, how many it alone drops, how many all drop together; a histogram for each score with its
limits; pictures of clips on both sides of each limit; and every source file, the broken ones with their reason.

Legend: N clips.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.curation.charts import histogram, thumbnail
from training.curation.filter import Mask, Rule, Scores, load_scores, read_rules, verdicts
from training.curation.records import ClipRecord, SourceRecord
from training.curation.tables import read_table, write_text
from training.data.frames import READING_ERRORS

REPORT = "report.html"
EXAMPLES = 6
VECTORS = ("embedding", "clip_embedding")
"""Scores whose value is a vector's length: nothing to look at."""

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}h2{margin-top:2em}h3{margin:1.4em 0 .3em}
.strip{display:flex;flex-wrap:wrap;gap:8px}.strip figure{margin:0;width:168px}figcaption{font-size:12px;color:#555}
img{width:168px;border-radius:3px;display:block}.plays{position:relative;display:block}
.plays .clip{position:absolute;inset:0;visibility:hidden}.plays:hover .clip,.plays:focus .clip{visibility:visible}
svg text{font-size:10px;fill:#555}.none{color:#888}
.charts{display:flex;flex-wrap:wrap;gap:18px}.bad{color:#b03a2e}.key span{padding:0 .5em;border-radius:3px;color:#fff}
"""


@dataclass(frozen=True, slots=True)
class Page:
    """What the report is made from."""

    folder: Path
    scores: Scores
    rules: Sequence[Rule]
    dropped: dict[str, Mask]
    clips: dict[str, ClipRecord]

    @property
    def gone(self) -> Mask:
        """Clips that any axis drops, [N]."""
        nothing = np.zeros(len(self.scores.clip_ids), bool)
        return np.any(list(self.dropped.values()), axis=0) if self.dropped else nothing

    def alone(self, axis: str) -> Mask:
        """Clips that this axis drops and no other, [N]."""
        others = [mask for name, mask in self.dropped.items() if name != axis]
        return self.dropped[axis] & ~np.any(others, axis=0) if others else self.dropped[axis]


def write_report(folder: Path) -> None:
    """Write report.html of a dataset folder.

    Raises:
        DataError: the folder holds no clips' table.
        InvalidRequest: its thresholds file cannot be read.
        MissingExtra: pyarrow is not installed.
    """
    scores, rules = load_scores(folder), read_rules(folder)
    clips = {clip.clip_id: clip for clip in read_table(folder / "clips.parquet", ClipRecord)}
    page = Page(folder, scores, rules, verdicts(scores, rules), clips)
    parts = [_summary(page), _axes(page), _together(page), _histograms(page), _examples(page), _sources(folder)]
    title = f"Curation of {html.escape(folder.resolve().name)}"
    head = f"<meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
    write_text(folder / REPORT, f"<!doctype html><html lang='en'>{head}<h1>{title}</h1>{''.join(parts)}</html>\n")


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], numbers_from: int = 1) -> str:
    def cells(tag: str, row: Sequence[object]) -> str:
        kinds = ["" if index < numbers_from else " class='n'" for index in range(len(row))]
        return "".join(f"<{tag}{kind}>{html.escape(str(one))}</{tag}>" for kind, one in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', columns)}</tr>{body}</table>"


def _summary(page: Page) -> str:
    count, gone = len(page.scores.clip_ids), int(page.gone.sum())
    seconds = {name: clip.end_s - clip.start_s for name, clip in page.clips.items()}
    kept_s = sum(seconds[name] for name, out in zip(page.scores.clip_ids, page.gone, strict=True) if not out)
    total_s = sum(seconds.values())
    return (
        f"<p><b>{count - gone:,} of {count:,} clips kept</b>: {kept_s:,.1f} s of {total_s:,.1f} s. "
        f"{gone:,} dropped.</p>"
    )


def describe_rule(rule: Rule) -> str:
    """A rule in words."""
    parts = [
        (rule.at_least, "at least {:g}"),
        (rule.at_most, "at most {:g}"),
        (rule.drop_lowest_percent, "not the lowest {:g}%"),
        (rule.drop_highest_percent, "not the highest {:g}%"),
    ]
    words = [form.format(value) for value, form in parts if value is not None]
    return ", ".join([*words, *(["scored"] if rule.unscored == "drop" else [])])


def _axes(page: Page) -> str:
    count = max(1, len(page.scores.clip_ids))
    rows: list[Sequence[object]] = []
    for rule in page.rules:
        values, mask = page.scores.of(rule.axis), page.dropped[rule.axis]
        scored = int((~np.isnan(values)).sum())
        own = int(page.alone(rule.axis).sum())
        drops = f"{int(mask.sum()):,}" if scored or mask.any() else "not scored"
        rows.append((rule.axis, describe_rule(rule), f"{scored:,}", drops, f"{mask.sum() / count:.1%}", f"{own:,}"))
    gone = int(page.gone.sum())
    rows.append(("all together", "", "", f"{gone:,}", f"{gone / count:.1%}", ""))
    columns = ("axis", "kept is", "clips scored", "drops", "of all clips", "drops that no other axis does")
    return "<h2>What each axis drops</h2>" + _table(columns, rows, 2)


def _together(page: Page) -> str:
    axes = [axis for axis, mask in page.dropped.items() if mask.any()]
    if len(axes) < 2:
        return ""
    rows = [[one, *(int((page.dropped[one] & page.dropped[other]).sum()) for other in axes)] for one in axes]
    return "<h2>Dropped by two axes at once</h2>" + _table(["", *axes], rows)


def _histograms(page: Page) -> str:
    rules = {rule.axis: rule for rule in page.rules}
    charts = []
    for name in [*rules, *(name for name in page.scores.values if name not in rules and name not in VECTORS)]:
        values = page.scores.of(name)
        low, high = rules[name].limits(values) if name in rules else (-math.inf, math.inf)
        note = "" if name in rules else " <span class='none'>(no rule)</span>"
        charts.append(f"<div><h3>{html.escape(name)}{note}</h3>{histogram(values, low, high)}</div>")
    key = "<p class='key'><span style='background:#3b7dd8'>kept by this axis</span> "
    key += "<span style='background:#d9822b'>dropped by it</span></p>"
    return f"<h2>Scores</h2>{key}<div class='charts'>{''.join(charts)}</div>"


def _examples(page: Page) -> str:
    parts = ["<h2>Examples</h2>"]
    for rule in page.rules:
        values, mask = page.scores.of(rule.axis), page.dropped[rule.axis]
        if not mask.any():
            continue
        low, high = rule.limits(values)
        edge = low if math.isfinite(low) else high
        near = np.argsort(np.where(np.isnan(values) | mask, np.inf, np.abs(values - edge)), kind="stable")
        stays = [int(index) for index in near[:EXAMPLES] if not mask[index] and not np.isnan(values[index])]
        gone = np.flatnonzero(mask)
        gone = gone[np.linspace(0, len(gone) - 1, min(EXAMPLES, len(gone))).round().astype(int)]
        parts.append(f"<h3>{html.escape(rule.axis)}: dropped</h3>{_strip(page, rule.axis, [int(i) for i in gone])}")
        parts.append(f"<h3>{html.escape(rule.axis)}: kept, nearest to the limit</h3>{_strip(page, rule.axis, stays)}")
    return "".join(parts)


def _strip(page: Page, axis: str, indices: Sequence[int]) -> str:
    figures = []
    for index in indices:
        name = page.scores.clip_ids[index]
        clip, value = page.clips[name], page.scores.of(axis)[index]
        try:
            picture = thumbnail(page.folder / clip.file, clip.frames)
        except READING_ERRORS as error:
            picture = f"<p class='bad'>{html.escape(str(error))}</p>"
        text = f"{axis} {value:.3g}, {clip.start_s:.1f} to {clip.end_s:.1f} s<br><code>{name}</code>"
        figures.append(f"<figure>{picture}<figcaption>{text}</figcaption></figure>")
    return f"<div class='strip'>{''.join(figures)}</div>"


def _sources(folder: Path) -> str:
    path = folder / "sources.parquet"
    if not path.exists():
        return ""
    sources = read_table(path, SourceRecord)
    broken = Counter(source.error is not None for source in sources)[True]
    rows = [
        (
            source.path,
            source.error or (f"read, but {source.warning}" if source.warning else "read"),
            f"{source.duration_s:.1f}",
            f"{source.width} x {source.height}",
            f"{float(source.fps):.3f}{' (varies)' if source.variable else ''}",
            source.codec,
        )
        for source in sorted(sources, key=lambda one: (one.error is None, one.warning is None, one.path))
    ]
    columns = ("file", "state", "seconds", "size", "frames a second", "codec")
    return f"<h2>Sources</h2><p>{len(sources):,} files, {broken:,} give no clips.</p>" + _table(columns, rows, 2)

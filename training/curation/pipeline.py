"""Raw footage to a dataset, from the first stage to the last: `stillmotion curate`.

The stages that read video leave finished pieces in parts/; when all of them are done, the pieces become the tables, the
filter is asked, and the kept clips are written. Run again after a crash or with other thresholds, only what is missing
is done.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.errors import DataError, InvalidRequest
from training.config import ProgressCallback
from training.curation.clips_plan import ClipRules
from training.curation.plugins import CAPTION_SCORERS, CAPTIONERS, DATASET_SCORERS, FILTERS, REPORTS, SCORERS
from training.curation.records import CaptionRecord, ClipRecord, Cut, ScoreRecord, SourceRecord, ToolOptions
from training.curation.runners import RUNNERS, CurationPlan, Runner, grouped
from training.curation.speed import NAME as SPEED
from training.curation.stages import CutClips, Fault, FindCuts, Probe, caption_parts, check_names, score_parts
from training.curation.tables import write_table
from training.curation.write import write_dataset

_NAMED_FAULTS = 5
"""Faults that a source's line names; it counts the others."""
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv"}
    | {".3gp", ".y4m", ".gif", ".h264", ".264", ".hevc", ".vob"}
)
"""Which files of a folder are sources; a file that is named itself always is."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a dataset is made with; all of it is written into its manifest.

    Args:
        cuts: the cut detector.
        scorers, captioners: by name; None for all there are.
        tools: settings by tool.
    """

    cuts: str = "cascade"
    rules: ClipRules = field(default_factory=ClipRules)
    scorers: tuple[str, ...] | None = None
    captioners: tuple[str, ...] | None = None
    tools: Mapping[str, ToolOptions] = field(default_factory=dict)

    def all_scorers(self) -> tuple[str, ...]:
        """The scorers to run: the one that motion buckets need is always among them."""
        chosen = tuple(SCORERS) if self.scorers is None else self.scorers
        return (SPEED, *(name for name in chosen if name != SPEED))

    def all_captioners(self) -> tuple[str, ...]:
        """The captioners to run, in the order in which they build on each other."""
        return tuple(name for name in CAPTIONERS if self.captioners is None or name in self.captioners)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with.

    Args:
        broken: sources that give no clips, with the reason.
        damaged: sources of which single clips could not be cut, scored or captioned, with the reasons.
        kept_s, snapped_s, short_s: seconds in clips, lost to where copies may begin and end, and in shots too short.
    """

    dataset: Path
    manifest: dict[str, Any]
    broken: tuple[tuple[str, str], ...]
    kept_s: float
    snapped_s: float
    short_s: float
    damaged: tuple[tuple[str, str], ...] = ()


def curate(
    sources: Sequence[Path],
    dataset: Path,
    settings: Settings | None = None,
    runner: Runner | None = None,
    report: ProgressCallback = lambda *_: None,
) -> Outcome:
    """Make a dataset of the sources (files, or folders with videos), or go on making it.

    Raises:
        InvalidRequest: no source, one that does not exist, or a tool that there is none of.
        DataError: what was made before is damaged.
        MissingExtra: a library is not installed.
    """
    settings = settings or Settings()
    check_names(settings.all_scorers(), settings.captioners or (), settings.cuts, settings.tools)
    dataset.mkdir(parents=True, exist_ok=True)
    work = _planned(find_sources(sources), dataset, settings)
    (runner or RUNNERS["local"]()).run(work, report)
    found = _write_tables(work, dataset)
    manifest = select(dataset, _manifest_settings(settings), report)
    broken = tuple((one.path, one.error) for one in found if one.error is not None)
    damaged = tuple((one.path, one.warning) for one in found if one.warning is not None)
    return Outcome(dataset, manifest, broken, *_losses(work, found), damaged)


def select(dataset: Path, settings: dict[str, Any], report: ProgressCallback = lambda *_: None) -> dict[str, Any]:
    """Ask the filter, write the kept clips and the report; reads no video. Returns the manifest.

    Raises:
        DataError: the folder holds no curated clips.
    """
    for name, run in FILTERS.items():
        report(f"filtering by {name}", 0, 0)
        run(dataset)
    manifest = write_dataset(dataset, settings)
    for name, run in REPORTS.items():
        report(f"writing the {name}", 0, 0)
        run(dataset)
    return manifest


def reselect(dataset: Path, report: ProgressCallback = lambda *_: None) -> dict[str, Any]:
    """`select` again in a finished dataset folder, under the settings that it was made with.

    Raises:
        DataError: the folder is no curated dataset.
    """
    path = dataset / "manifest.json"
    if not path.exists():
        raise DataError(f"{dataset} is no curated dataset: make one with `stillmotion curate SOURCE --out {dataset}`")
    return select(dataset, json.loads(path.read_text())["settings"], report)


def find_sources(given: Sequence[Path]) -> tuple[str, ...]:
    """The files to read: those named, and the videos in folders that are named; sorted, each once.

    Raises:
        InvalidRequest: there is none, or one does not exist.
    """
    files: set[Path] = set()
    for path in given:
        if not path.exists():
            raise InvalidRequest(f"{path} does not exist", param="source")
        inside = path.rglob("*") if path.is_dir() else [path]
        files |= {one for one in inside if one.is_file() and (one == path or one.suffix.lower() in VIDEO_SUFFIXES)}
    if not files:
        raise InvalidRequest("there is no video to curate; name files, or folders that hold some", param="source")
    return tuple(str(path.resolve()) for path in sorted(files))


def _planned(sources: tuple[str, ...], dataset: Path, settings: Settings) -> CurationPlan:
    folder = str(dataset.resolve())
    find_cuts = FindCuts(folder, settings.cuts)
    cut_clips = CutClips(folder, find_cuts, settings.rules)
    groups = grouped(settings.all_scorers(), settings.tools)
    captioners = settings.all_captioners()
    return CurationPlan(folder, sources, Probe(folder), find_cuts, cut_clips, groups, captioners, settings.tools)


def _manifest_settings(settings: Settings) -> dict[str, Any]:
    """The settings as the manifest has them."""
    return {
        "cuts": settings.cuts,
        "rules": asdict(settings.rules),
        "scorers": list(settings.all_scorers()),
        "captioners": list(settings.all_captioners()),
        "tools": {name: dict(options) for name, options in settings.tools.items()},
    }


def _write_tables(work: CurationPlan, dataset: Path) -> list[SourceRecord]:
    """The finished pieces as tables, sorted; returns the sources, with what went wrong in later stages."""
    sources = [_with_fault(work, one) for path in work.sources for one in _probed(work, path)]
    good = sorted({one.sha256 for one in sources if one.error is None})
    clips = [clip for key in good for clip in work.cut_clips.parts.get(key, ClipRecord) or []]
    clips.sort(key=lambda clip: clip.clip_id)
    sources = _with_warnings(work, sources, clips)
    write_table(dataset / "sources.parquet", SourceRecord, sources)
    write_table(dataset / "cuts.parquet", Cut, (c for key in good for c in work.find_cuts.parts.get(key, Cut) or []))
    write_table(dataset / "clips.parquet", ClipRecord, clips)
    scores, captions = _write_scores(work, dataset, clips), _write_captions(work, dataset, clips)
    written = {name for _, names in work.score_groups for name in names}
    for name, make in DATASET_SCORERS.items():
        write_table(
            dataset / "scores" / f"{name}.parquet", ScoreRecord, make(work.tools.get(name, {})).score_all(scores)
        )
        written.add(name)
    for name, judge in CAPTION_SCORERS.items():
        records = judge(work.tools.get(name, {})).score_captions(scores, captions)
        write_table(dataset / "scores" / f"{name}.parquet", ScoreRecord, records)
        written.add(name)
    for stale in (dataset / "scores").glob("*.parquet"):
        if stale.stem not in written:
            stale.unlink()
    return sources


def _probed(work: CurationPlan, path: str) -> list[SourceRecord]:
    """What the first stage found, under the name the file was given by in this run."""
    done = work.probe.parts.get(Probe.key(path), SourceRecord) or []
    return [dataclasses.replace(one, path=path) for one in done]


def _with_fault(work: CurationPlan, source: SourceRecord) -> SourceRecord:
    for parts in (work.find_cuts.faults, work.cut_clips.faults):
        for fault in (parts.get(source.sha256, Fault) if source.sha256 else None) or []:
            return dataclasses.replace(source, error=fault.error)
    return source


def _with_warnings(
    work: CurationPlan, sources: Sequence[SourceRecord], clips: Sequence[ClipRecord]
) -> list[SourceRecord]:
    """The sources, with what went wrong with single clips of theirs."""
    stages = [score_parts(work.dataset, name, work.tools) for _, names in work.score_groups for name in names]
    stages += [caption_parts(work.dataset, work.captioners[: k + 1], work.tools) for k in range(len(work.captioners))]
    lost = {one.sha256: [f.error for f in work.cut_clips.lost.get(one.sha256, Fault) or []] for one in sources}
    for clip in clips:
        for parts in stages:
            for fault in parts.faults.get(clip.clip_id, Fault) or []:
                lost[clip.source].append(f"the clip at {clip.start_s:.2f} s: {fault.error}")
    return [dataclasses.replace(one, warning=_warning(lost[one.sha256])) if not one.error else one for one in sources]


def _warning(faults: Sequence[str]) -> str | None:
    named = "; ".join(faults[:_NAMED_FAULTS])
    return (named + (f"; and {len(faults) - _NAMED_FAULTS} more" if len(faults) > _NAMED_FAULTS else "")) or None


def _write_scores(work: CurationPlan, dataset: Path, clips: Sequence[ClipRecord]) -> list[ScoreRecord]:
    everything: list[ScoreRecord] = []
    for _, names in work.score_groups:
        for name in names:
            parts = score_parts(work.dataset, name, work.tools)
            rows = [one for clip in clips for one in parts.get(clip.clip_id, ScoreRecord) or []]
            write_table(dataset / "scores" / f"{name}.parquet", ScoreRecord, rows)
            everything += rows
    return everything


def _write_captions(work: CurationPlan, dataset: Path, clips: Sequence[ClipRecord]) -> list[CaptionRecord]:
    every = [caption_parts(work.dataset, work.captioners[: k + 1], work.tools) for k in range(len(work.captioners))]
    rows = [one for clip in clips for parts in every for one in parts.get(clip.clip_id, CaptionRecord) or []]
    write_table(dataset / "captions.parquet", CaptionRecord, rows)
    return rows


def _losses(work: CurationPlan, sources: Sequence[SourceRecord]) -> tuple[float, float, float]:
    kept = snapped = short = 0.0
    for source in sources:
        if source.error is None:
            cuts = work.find_cuts.parts.get(source.sha256, Cut) or []
            clips = work.cut_clips.parts.get(source.sha256, ClipRecord) or []
            lost = shot_loss(source, cuts, clips, work.cut_clips.rules)
            kept, snapped, short = kept + lost[0], snapped + lost[1], short + lost[2]
    return kept, snapped, short


def shot_loss(
    source: SourceRecord, cuts: Sequence[Cut], clips: Sequence[ClipRecord], rules: ClipRules
) -> tuple[float, float, float]:
    """Seconds of a source's shots: in clips, lost otherwise, and in shots below the least length."""
    edges = [0.0, *(moment for cut in cuts for moment in (cut.start_s, cut.end_s)), source.duration_s]
    lengths = [end - start for start, end in zip(edges[0::2], edges[1::2], strict=True) if end > start]
    short = sum(length for length in lengths if length < rules.min_s)
    kept = sum(clip.end_s - clip.start_s for clip in clips)
    return kept, max(0.0, sum(lengths) - short - kept), short

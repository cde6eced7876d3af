"""The stages of the pipeline: each one a typed class that says what a worker of it needs.

A stage takes a row and gives rows; a row holds one record as JSON, so that it travels between machines. What a stage
has finished lies in the dataset's parts/ before its row goes on: run again (a worker died, the machine was switched
off), it finds that and does not work twice. Work done twice at once gives the same piece, so that does no harm either.

A source that fails in a stage leaves a Fault, and no rows: the others go on. So does a clip that cannot be cut, scored
or captioned, and its neighbours go on. What is no file's fault (a library that is missing, a full disk) ends the run.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from model.errors import InvalidRequest, MissingExtra, StorageFull
from training.curation.clips import cut_clips
from training.curation.clips_plan import ClipRules, plan, shots, timeline
from training.curation.cuts import CASCADE, find_cuts
from training.curation.frames import ClipFrames
from training.curation.plugins import CAPTIONERS, SCORERS
from training.curation.probe import describe_fault, index_packets, probe
from training.curation.protocols import Captioner, Scorer, ToolUnavailable
from training.curation.records import CaptionRecord, ClipRecord, Cut, Resources, ScoreRecord, SourceRecord, ToolOptions
from training.curation.speed import NAME as SPEED
from training.curation.speed import SpeedScorer
from training.curation.tables import Parts, from_row, to_row

Row = dict[str, str]
Tools = Mapping[str, ToolOptions]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a stage could not do its work on a source."""

    source: str
    stage: str
    error: str


def refuse_environment(error: Exception) -> None:
    """Raise an error again that no source is to blame for: a missing library, a full disk, a server that is away."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    if full or isinstance(error, MissingExtra | StorageFull | ToolUnavailable):
        raise error


def _fault(source: str, stage: str, error: Exception) -> Fault:
    refuse_environment(error)
    return Fault(source, stage, describe_fault(stage, error))


def row_of(record: Any) -> Row:
    """A record as a row."""
    return {"record": json.dumps(to_row(record))}


def _from(kind: type[Any], row: Row) -> Any:
    return from_row(kind, json.loads(row["record"]))


def _transnet(path: Path, source: str) -> list[Cut]:
    from training.curation.cuts_transnet import find_cuts_transnet

    return find_cuts_transnet(path, source)


DETECTORS: dict[str, Callable[[Path, str], list[Cut]]] = {"cascade": find_cuts, "transnet": _transnet}
"""Cut detectors, by the name that `--cuts` takes."""


@dataclass(frozen=True)
class Probe:
    """Source files to their records; a broken one goes no further."""

    dataset: str
    resources: ClassVar[Resources] = Resources(cpus=0.5)

    @property
    def parts(self) -> Parts:
        """Finished pieces, by path, size and time of change."""
        return Parts(Path(self.dataset), "sources", {"sizes": "as displayed"})

    @staticmethod
    def key(path: str) -> str:
        """Of a file as it is now."""
        stat = Path(path).stat() if Path(path).exists() else None
        identity = f"{Path(path).resolve()}:{stat.st_size}:{stat.st_mtime_ns}" if stat else path
        return hashlib.sha256(identity.encode()).hexdigest()

    def __call__(self, row: Row) -> list[Row]:
        """A row {"path"} to the source's record."""
        key = self.key(row["path"])
        done = self.parts.get(key, SourceRecord)
        if done is None:
            done = [probe(Path(row["path"]))]
            self.parts.put(key, done)
        return [row_of(source) for source in done if source.error is None]


@dataclass(frozen=True)
class FindCuts:
    """Sources to their cuts; the source's row goes on."""

    dataset: str
    detector: str
    resources: ClassVar[Resources] = Resources(cpus=1)

    @property
    def _settings(self) -> object:
        return [self.detector, [asdict(level) for level in CASCADE] if self.detector == "cascade" else ""]

    @property
    def parts(self) -> Parts:
        """Cuts, by the source's SHA-256."""
        return Parts(Path(self.dataset), "cuts", self._settings)

    @property
    def faults(self) -> Parts:
        """What went wrong, likewise."""
        return Parts(Path(self.dataset), "cut-faults", self._settings)

    def __call__(self, row: Row) -> list[Row]:
        """A source's row goes on once its cuts are stored."""
        source = _from(SourceRecord, row)
        if self.faults.get(source.sha256, Fault) is not None:
            return []
        if self.parts.get(source.sha256, Cut) is None:
            try:
                self.parts.put(source.sha256, DETECTORS[self.detector](Path(source.path), source.sha256))
            except Exception as error:  # noqa: BLE001 -- whatever an odd file makes a library raise is its own line
                self.faults.put(source.sha256, [_fault(source.sha256, "cuts", error)])
                return []
        return [row]


@dataclass(frozen=True)
class CutClips:
    """Sources to clips, as files in the dataset folder; a row for each clip."""

    dataset: str
    find_cuts: FindCuts
    rules: ClipRules
    resources: ClassVar[Resources] = Resources(cpus=1)

    @property
    def _settings(self) -> object:
        return [asdict(self.rules), self.find_cuts._settings, "tags kept or applied"]

    @property
    def parts(self) -> Parts:
        """Clips, by the source's SHA-256."""
        return Parts(Path(self.dataset), "clips", self._settings)

    @property
    def faults(self) -> Parts:
        """Why a source gives no clips, likewise."""
        return Parts(Path(self.dataset), "clip-faults", self._settings)

    @property
    def lost(self) -> Parts:
        """Why a source gives fewer clips than it might, likewise: one fault a clip."""
        return Parts(Path(self.dataset), "lost-clips", self._settings)

    def __call__(self, row: Row) -> list[Row]:
        """A source's row to its clips' rows."""
        source = _from(SourceRecord, row)
        if self.faults.get(source.sha256, Fault) is not None:
            return []
        done = self.parts.get(source.sha256, ClipRecord)
        folder = Path(self.dataset)
        if done is None or not all((folder / clip.file).exists() for clip in done):
            cuts = self.find_cuts.parts.get(source.sha256, Cut)
            assert cuts is not None, "the stage before stores them first"
            lost: list[Fault] = []
            try:
                done = self._cut(source, cuts, folder, lost)
            except Exception as error:  # noqa: BLE001 -- whatever an odd file makes a library raise is its own line
                self.faults.put(source.sha256, [_fault(source.sha256, "clips", error)])
                return []
            if lost and not done:
                self.faults.put(source.sha256, lost)
                return []
            self.lost.put(source.sha256, lost)
            self.parts.put(source.sha256, done)
        return [row_of(clip) for clip in done]

    def _cut(self, source: SourceRecord, cuts: Sequence[Cut], folder: Path, lost: list[Fault]) -> list[ClipRecord]:
        def on_fault(start_s: float, error: Exception) -> None:
            fault = _fault(source.sha256, "clips", error)
            lost.append(dataclasses.replace(fault, error=f"the clip at {start_s:.2f} s: {fault.error}"))

        index = index_packets(Path(source.path))
        line = timeline(index, end_on_keyframes=self.rules.end_on_keyframes)
        return cut_clips(source, index, plan(line, shots(line, cuts), self.rules), folder, on_fault)


def make_scorer(name: str, tools: Tools) -> Scorer:
    """A scorer by name, with its settings."""
    options = tools.get(name, {})
    return SpeedScorer(options) if name == SPEED else SCORERS[name](options)


def score_parts(dataset: str, name: str, tools: Tools) -> Parts:
    """A scorer's finished pieces, by clip."""
    return Parts(Path(dataset), f"scores-{name}", dict(tools.get(name, {})))


class Score:
    """Clips to scores, by several scorers that read one pass over the clip's frames; the clip's row goes on."""

    def __init__(self, dataset: str, names: Sequence[str], tools: Tools) -> None:
        self.dataset = Path(dataset)
        self.scorers = [(make_scorer(name, tools), score_parts(dataset, name, tools)) for name in names]

    def __call__(self, row: Row) -> list[Row]:
        """A clip's row goes on once all its scores are stored."""
        clip = _from(ClipRecord, row)
        frames = ClipFrames(self.dataset / clip.file, clip)
        for scorer, parts in self.scorers:
            if parts.get(clip.clip_id, ScoreRecord) is None:
                parts.put(clip.clip_id, _scored(scorer, frames, parts))
        return [row]


def _scored(scorer: Scorer, frames: ClipFrames, parts: Parts) -> list[ScoreRecord]:
    try:
        return scorer.score(frames)
    except MissingExtra as error:
        return [ScoreRecord(frames.clip_id, scorer.name, None, str(error), "", "")]
    except Exception as error:  # noqa: BLE001 -- whatever an odd clip makes a library raise is its own line
        fault = _fault(frames.clip.source, f"scoring by {scorer.name}", error)
        parts.faults.put(frames.clip_id, [fault])
        return [ScoreRecord(frames.clip_id, scorer.name, None, fault.error, "", "")]


def caption_parts(dataset: str, names: Sequence[str], tools: Tools) -> Parts:
    """The captions of the last of `names`, by clip; it may build on what those before it said."""
    return Parts(Path(dataset), f"captions-{names[-1]}", [(name, dict(tools.get(name, {}))) for name in names])


class Caption:
    """Clips to captions, a batch at a time, by the last of `names`; the clips' rows go on."""

    def __init__(self, dataset: str, names: Sequence[str], tools: Tools) -> None:
        self.dataset = Path(dataset)
        self.captioner: Captioner = CAPTIONERS[names[-1]](tools.get(names[-1], {}))
        self.parts = caption_parts(dataset, names, tools)
        self.before = [caption_parts(dataset, names[: k + 1], tools) for k in range(len(names) - 1)]

    def batch(self, rows: Sequence[Row]) -> list[Row]:
        """Clips' rows go on once their captions are stored."""
        clips: list[ClipRecord] = [_from(ClipRecord, row) for row in rows]
        todo = [clip for clip in clips if self.parts.get(clip.clip_id, CaptionRecord) is None]
        if todo:
            frames = [ClipFrames(self.dataset / clip.file, clip) for clip in todo]
            earlier = [
                [one for parts in self.before for one in parts.get(clip.clip_id, CaptionRecord) or []] for clip in todo
            ]
            for clip, caption in zip(todo, self._captions(frames, earlier), strict=True):
                self.parts.put(clip.clip_id, [caption])
        return list(rows)

    def _captions(self, clips: list[ClipFrames], earlier: list[list[CaptionRecord]]) -> list[CaptionRecord]:
        """Captions of a batch; where it fails, of one clip after another, so that one does not take the rest along."""
        try:
            return self.captioner.caption(clips, earlier)
        except Exception as error:  # noqa: BLE001 -- whatever an odd clip makes a library raise is its own line
            refuse_environment(error)
            if len(clips) > 1:
                pairs = zip(clips, earlier, strict=True)
                return [caption for clip, said in pairs for caption in self._captions([clip], [said])]
            clip, name = clips[0], self.captioner.name
            fault = _fault(clip.clip.source, f"captioning by {name}", error)
            self.parts.faults.put(clip.clip_id, [fault])
            return [CaptionRecord(clip.clip_id, name, None, f"not captioned: {fault.error}", "", "")]

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """The same for a batch of Ray Data: a column of records."""
        rows = self.batch([{"record": str(one)} for one in batch["record"]])
        return {"record": [row["record"] for row in rows]}


def check_names(scorers: Sequence[str], captioners: Sequence[str], detector: str, tools: Tools) -> None:
    """Refuse names that no tool has.

    Raises:
        InvalidRequest: naming those there are.
    """
    known = {"cuts": DETECTORS, "score": {SPEED, *SCORERS}, "caption": CAPTIONERS}
    known["tool"] = {SPEED, *SCORERS, *CAPTIONERS}
    requested = {"cuts": [detector], "score": scorers, "caption": captioners, "tool": list(tools)}
    for param, names in requested.items():
        for name in names:
            if name not in known[param]:
                raise InvalidRequest(f"there is no {name!r}; there are: {', '.join(sorted(known[param]))}", param=param)

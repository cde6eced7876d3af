"""What the stages hand to each other, and what the tables hold: one frozen dataclass a row.

Times are seconds from the first frame of the source as a player shows it; `pts` are the container's own ticks. A clip
is [start, end): its end is the moment at which the frame after its last would be shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

CutKind = Literal["hard", "fade", "dissolve"]
ToolOptions = Mapping[str, str]
"""A tool's settings as the caller wrote them: `{"weights": "DIR"}`."""


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One source file; where `error` is set, whatever could not be found out is 0, "" or empty.

    Args:
        path: as it was given.
        sha256: of the file's bytes; empty where it cannot be read.
        fps: average frames a second.
        duration_s: of the video stream.
        frames: how many can be decoded to a picture, as the container counts them.
        width, height: as a player shows it: turned, with square pixels.
        rotation: degrees that a player turns the picture clockwise: 0, 90, 180 or 270.
        variable: whether frames last differently long.
        keyframes_s: when each keyframe is shown, ascending.
        error: why the file gives no clips, with the stage and the exception's name; None where it does.
        warning: what went wrong with single clips of it; None where nothing did.
    """

    path: str
    sha256: str
    bytes: int
    container: str
    codec: str
    pix_fmt: str
    fps: Fraction
    duration_s: float
    frames: int
    width: int
    height: int
    rotation: int
    variable: bool
    keyframes_s: tuple[float, ...]
    error: str | None
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut of a source.

    Args:
        source: the file's SHA-256.
        time_s: a hard cut's first new frame; the middle of a transition.
        start_s, end_s: from the first to past the last mixed frame; both `time_s` for a hard cut.
        score: the detector's own figure, in its own unit.
        detector: which one, with its settings.
        level: of the cascade: `full`, `middle`, `slow`; `transnet` for the other detector.
    """

    source: str
    time_s: float
    start_s: float
    end_s: float
    kind: CutKind
    score: float
    detector: str
    level: str


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One clip.

    Args:
        clip_id: see `clip_id`.
        source: the source file's SHA-256.
        start_s, end_s: in the source.
        start_pts, end_pts: the same in ticks of the source's time base.
        byte_start, byte_end: where the source's packets of the clip lie in the source file; 0, 0 where the container
            does not say.
        file: path inside the dataset folder.
        sha256: of that file.
        encoded: `copy` for the source's own packets, `edges` where the ends were encoded anew, `whole` where all was.
    """

    clip_id: str
    source: str
    start_s: float
    end_s: float
    start_pts: int
    end_pts: int
    byte_start: int
    byte_end: int
    file: str
    sha256: str
    frames: int
    width: int
    height: int
    fps: Fraction
    encoded: str


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """One figure about one clip, as measured: never a verdict.

    Args:
        name: what is measured: `flow_mean`, `text_area`. Several may come from one scorer.
        value: None where it was not scored; then `reason` says why.
        tool: what measured it, with its version.
        weights_sha256: of the weights it used; empty for a tool without.
        vector: an embedding, for scores that compare clips; else empty.
    """

    clip_id: str
    name: str
    value: float | None
    reason: str | None
    tool: str
    weights_sha256: str
    vector: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """One caption of one clip, under its captioner's name; where `text` is None, `reason` says why."""

    clip_id: str
    captioner: str
    text: str | None
    reason: str | None
    tool: str
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class Resources:
    """What one worker of a stage needs.

    Args:
        cpus, gpus: reserved for it; fractions share a device.
        batch: how many clips it is handed at once.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    batch: int = 1


def clip_id(source_sha256: str, start_s: float, end_s: float) -> str:
    """A name that depends only on the source's bytes and the clip's times, to the microsecond: 20 hex digits."""
    key = f"{source_sha256}:{round(start_s * 1e6)}:{round(end_s * 1e6)}"
    return hashlib.sha256(key.encode()).hexdigest()[:20]


def score_records(clip_id: str, values: Mapping[str, float], tool: str, weights_sha256: str = "") -> list[ScoreRecord]:
    """A record for each named value."""
    return [ScoreRecord(clip_id, name, float(value), None, tool, weights_sha256) for name, value in values.items()]


def unscored_records(
    clip_id: str, names: Iterable[str], reason: str, tool: str, weights_sha256: str = ""
) -> list[ScoreRecord]:
    """A record for each name that says why there is no value."""
    return [ScoreRecord(clip_id, name, None, f"not scored: {reason}", tool, weights_sha256) for name in names]


def caption_record(clip_id: str, captioner: str, text: str, tool: str, weights_sha256: str = "") -> CaptionRecord:
    """A caption on one line; an empty one is no caption."""
    line = " ".join(text.split())
    if not line:
        return missing_caption(clip_id, captioner, "the captioner said nothing", tool, weights_sha256)
    return CaptionRecord(clip_id, captioner, line, None, tool, weights_sha256)


def missing_caption(clip_id: str, captioner: str, reason: str, tool: str, weights_sha256: str = "") -> CaptionRecord:
    """A record that says why there is no caption."""
    return CaptionRecord(clip_id, captioner, None, f"not captioned: {reason}", tool, weights_sha256)

"""What a scorer and a captioner are: the interfaces that training.curation.plugins lists implementations of.

Beside them, what all of them need: the settings they know, and the versions of what they stand on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from model.errors import DataError, InvalidRequest
from training.curation.frames import ClipFrames
from training.curation.records import CaptionRecord, Resources, ScoreRecord, ToolOptions


class Scorer(Protocol):
    """Measures one clip. Made once in each worker; its weights are loaded then."""

    @property
    def name(self) -> str:
        """Of the table scores/NAME.parquet."""
        ...

    @property
    def resources(self) -> Resources:
        """What a worker needs."""
        ...

    def score(self, clip: ClipFrames) -> list[ScoreRecord]:
        """The clip's figures; one with value None and a reason for each that it cannot give."""
        ...


class DatasetScorer(Protocol):
    """Measures clips against each other, after all of them have been scored singly (near-duplicates)."""

    @property
    def name(self) -> str:
        """Of the table scores/NAME.parquet."""
        ...

    def score_all(self, scores: Sequence[ScoreRecord]) -> list[ScoreRecord]:
        """Figures from the figures of all clips."""
        ...


class CaptionScorer(Protocol):
    """Measures captions against their clips, after all clips have been scored and captioned (CLIP similarity)."""

    @property
    def name(self) -> str:
        """Of the table scores/NAME.parquet."""
        ...

    def score_captions(self, scores: Sequence[ScoreRecord], captions: Sequence[CaptionRecord]) -> list[ScoreRecord]:
        """Figures from the figures and the captions of all clips."""
        ...


class Captioner(Protocol):
    """Describes clips in words. Made once in each worker."""

    @property
    def name(self) -> str:
        """Under which its captions are stored."""
        ...

    @property
    def resources(self) -> Resources:
        """What a worker needs, and how many clips it takes at once."""
        ...

    def caption(self, clips: Sequence[ClipFrames], earlier: Sequence[Sequence[CaptionRecord]]) -> list[CaptionRecord]:
        """One caption a clip, in order.

        Args:
            earlier: for each clip, what the captioners listed before this one said (for one that merges them).
        """
        ...


class ToolUnavailable(DataError):
    """A tool that no clip is to blame for does not work: the run ends, and goes on when it is started again."""


MEASURED = "measured"
"""The captioner that needs no weights; its captions never pass for another's."""


def tool_version(name: str, distributions: Iterable[str]) -> str:
    """`NAME VERSION`, the version being that of the first of the distributions that is installed."""
    for distribution in distributions:
        try:
            return f"{name} {version(distribution)}"
        except PackageNotFoundError:
            continue
    return name


def known_options(tool: str, options: ToolOptions, known: Iterable[str]) -> None:
    """Refuse a setting that the tool does not have.

    Raises:
        InvalidRequest: naming it and those there are.
    """
    names = tuple(known)
    for name in options:
        if name not in names:
            listed = ", ".join(names) or "none"
            raise InvalidRequest(f"{tool} has no setting {name!r}; there are: {listed}", param="tool")

"""What a scorer and a captioner are: the interfaces that training.curation.plugins lists implementations of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from training.curation.frames import ClipFrames
from training.curation.records import CaptionRecord, Resources, ScoreRecord


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

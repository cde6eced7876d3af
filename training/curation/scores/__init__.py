"""Scores of clips, by name: what `--tool NAME.KEY=VALUE` settles and scores/NAME.parquet holds.

Scores are raw figures with the tool and the weights that gave them; no scorer decides what is good. What cannot be
measured (weights that nobody named, a clip too short) is a record without a value that says why.
"""

from __future__ import annotations

from collections.abc import Callable

from training.curation.protocols import CaptionScorer, DatasetScorer, Scorer
from training.curation.records import ToolOptions
from training.curation.scores.clip import ClipScorer
from training.curation.scores.clip_similarity import ClipSimilarityScorer
from training.curation.scores.embedding import DuplicateScorer, EmbeddingScorer
from training.curation.scores.motion import MotionScorer
from training.curation.scores.picture import PictureScorer
from training.curation.scores.text import TextScorer

SCORERS: dict[str, Callable[[ToolOptions], Scorer]] = {
    "motion": MotionScorer,
    "picture": PictureScorer,
    "text": TextScorer,
    "embedding": EmbeddingScorer,
    "clip": ClipScorer,
}
"""Run on each clip."""

DATASET_SCORERS: dict[str, Callable[[ToolOptions], DatasetScorer]] = {"near_duplicate": DuplicateScorer}
"""Compare clips with each other."""

CAPTION_SCORERS: dict[str, Callable[[ToolOptions], CaptionScorer]] = {"clip_similarity": ClipSimilarityScorer}
"""Compare captions with their clips."""

"""What can be plugged into the pipeline, by name: scorers, captioners, the filter, the report.

A factory takes the tool's settings as the caller wrote them (`--tool NAME.KEY=VALUE`) and is called once in each
worker, so it must be importable by name. Adding a tool is one line in the dict of its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.curation import captions, scores
from training.curation.filter import filter_dataset
from training.curation.protocols import Captioner, CaptionScorer, DatasetScorer, Scorer
from training.curation.records import ToolOptions
from training.curation.report import write_report

SCORERS: dict[str, Callable[[ToolOptions], Scorer]] = scores.SCORERS
"""Run on each clip; one table each."""

DATASET_SCORERS: dict[str, Callable[[ToolOptions], DatasetScorer]] = scores.DATASET_SCORERS
"""Run once, after all scorers."""

CAPTIONERS: dict[str, Callable[[ToolOptions], Captioner]] = captions.CAPTIONERS
"""Run on batches of clips, in this order: a later one sees what the earlier ones said."""

CAPTION_SCORERS: dict[str, Callable[[ToolOptions], CaptionScorer]] = scores.CAPTION_SCORERS
"""Run once, after all captioners; one table each, beside the scorers'."""

FILTERS: dict[str, Callable[[Path], None]] = {"thresholds": filter_dataset}
"""Each reads a dataset folder's tables and writes its selection.parquet; run before the shards are written."""

REPORTS: dict[str, Callable[[Path], None]] = {"page": write_report}
"""Each reads a finished dataset folder and writes its pages."""

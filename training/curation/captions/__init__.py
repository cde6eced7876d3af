"""Captioners, by name: what `--tool NAME.KEY=VALUE` settles and captions.parquet holds.

They run in this order, so that `merge` sees what `coca`, `video` and `vision` said. One whose weights nobody named
writes down that it did not caption, never a made-up caption.
"""

from __future__ import annotations

from collections.abc import Callable

from training.curation.captions.coca import CocaCaptioner
from training.curation.captions.measured import MeasuredCaptioner
from training.curation.captions.merge import MergeCaptioner
from training.curation.captions.video import VideoCaptioner
from training.curation.captions.vision import VisionCaptioner
from training.curation.protocols import Captioner
from training.curation.records import ToolOptions

CAPTIONERS: dict[str, Callable[[ToolOptions], Captioner]] = {
    "measured": MeasuredCaptioner,
    "coca": CocaCaptioner,
    "video": VideoCaptioner,
    "vision": VisionCaptioner,
    "merge": MergeCaptioner,
}

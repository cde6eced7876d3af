"""Text in the picture: the share of the area it covers, in the first, middle and last frame (paper, appendix C).

The paper detects text with CRAFT; here PP-OCR's detector does, which comes with the rapidocr package. `text_area` is
the largest of the three frames' shares: titles that come or go within a clip count. Boxes below BOX_SCORE are left out:
on smooth animated skies the detector reports large ones at about 0.5, while real lettering scores 0.7 and more. What is
left is read, and a box counts where the reader is sure enough of several characters: over Big Buck Bunny, what the
detector falsely took for text was read as one character, at up to 0.6; a title's ornate letters at 0.68, credits at 1.

Legend: N boxes of 4 corners, H, W pixels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import MissingExtra
from model.media.video import Frames
from training.curation.frames import ClipFrames
from training.curation.protocols import known_options, tool_version
from training.curation.records import Resources, ScoreRecord, ToolOptions, score_records

LONG_SIDE = 640
"""Pixels that frames are shrunk to before detection; credits of 20 lines on a 720-line film are still found."""
BOX_SCORE = 0.65
READ_SCORE = 0.5
"""How sure the reader must be of what a box says."""
FEWEST = 2
"""Characters that a box must hold."""
RASTER = 512
"""Long side of the grid on which boxes are counted once where they overlap."""
WEIGHTS = ("*det*.onnx", "*rec*.onnx")


def covered(boxes: np.ndarray[Any, np.dtype[Any]], height: int, width: int) -> float:
    """Share of an H x W picture inside any of the boxes [N, 4, 2] (x, y of the corners, pixels)."""
    try:
        import cv2
    except ImportError:
        raise MissingExtra("measuring text", "curate") from None
    if not len(boxes):
        return 0.0
    scale = RASTER / max(height, width)
    grid = np.zeros((max(1, round(height * scale)), max(1, round(width * scale))), np.uint8)
    for box in np.asarray(boxes, np.float64) * scale:
        cv2.fillPoly(grid, [np.round(box).astype(np.int32)], 1)
    return float(grid.mean())


class TextScorer:
    """Text area by PP-OCR's detector and reader."""

    name = "text"
    resources = Resources()

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, ())
        try:
            import onnxruntime  # noqa: F401 - rapidocr imports it only when it loads its networks
            import rapidocr
        except ImportError:
            raise MissingExtra("finding text", "curate") from None
        from training.data.sources import sha256_of

        self._engine: Any = rapidocr.RapidOCR(
            params={
                "Global.log_level": "error",
                "Det.limit_type": "max",
                "Det.limit_side_len": LONG_SIDE,
                "Det.box_thresh": BOX_SCORE,
                "Global.text_score": READ_SCORE,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            }
        )
        folder = Path(rapidocr.__file__).parent / "models"
        files = [only for pattern in WEIGHTS for only in folder.glob(pattern)]
        detector, _ = files
        self._weights = hashlib.sha256(" ".join(map(sha256_of, files)).encode()).hexdigest()
        limits = f"boxes from {BOX_SCORE}, read at {READ_SCORE}, {FEWEST} characters"
        self._tool = f"{tool_version('rapidocr', ('rapidocr',))} {detector.stem}, {limits}"

    def area(self, frame: Frames) -> float:
        """Share of one frame [H, W, 3] that text covers."""
        result = self._engine(np.ascontiguousarray(frame[..., ::-1]), use_det=True, use_cls=False, use_rec=True)
        if result.boxes is None:
            return 0.0
        read = [len(text.strip()) >= FEWEST for text in result.txts]
        return covered(np.asarray(result.boxes)[read], *frame.shape[:2])

    def score(self, clip: ClipFrames) -> list[ScoreRecord]:
        """`text_area`, from 0 to 1."""
        areas = [self.area(frame) for frame in clip.first_middle_last()]
        return score_records(clip.clip_id, {"text_area": max(areas)}, self._tool, self._weights)

"""What single pictures tell: sharpness, colourfulness, brightness, and black borders; first, middle and last frame.

- `sharpness`: variance of the Laplacian (training.metrics.image) at a short side of 360 pixels, median of the three.
- `colourfulness`: Hasler and Suesstrunk 2003, equation 3, median of the three; an honest stand-in for nothing else.
- `brightness`: mean luma from 0 to 1, median of the three.
- `black_border`: share of the picture's area in black bars along its edges, in all three frames.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from model.media.video import Frames
from training.curation.frames import ClipFrames
from training.curation.protocols import known_options, tool_version
from training.curation.records import Resources, ScoreRecord, ToolOptions, score_records
from training.metrics.image import sharpness

SHARPNESS_SHORT_SIDE = 360
BLACK = 16
"""Luma at or below which a pixel counts as black: video's black level, and a little noise in it."""


def colourfulness(frame: Frames) -> float:
    """Of a frame [H, W, 3]: 0 for grey, about 60 for lively colours, over 100 for gaudy ones."""
    red, green, blue = (frame[..., k].astype(np.float64) for k in range(3))
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def luma(frame: Frames) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """[H, W], 0 to 255."""
    return np.asarray(frame @ np.array([0.299, 0.587, 0.114]))


def black_border(frames: Frames) -> float:
    """Share of the area of [T, H, W, 3] taken by rows and columns at the edges that stay black in every frame.

    A picture that is black all over has no borders: 0.
    """
    bright = np.max([luma(frame) for frame in frames], axis=0) > BLACK
    rows, columns = np.flatnonzero(bright.mean(axis=1) > 0.01), np.flatnonzero(bright.mean(axis=0) > 0.01)
    if not len(rows) or not len(columns):
        return 0.0
    lit = int(rows[-1] - rows[0] + 1) * int(columns[-1] - columns[0] + 1)
    return 1 - lit / int(bright.size)


def _shrunk(frame: Frames) -> Frames:
    picture = Image.fromarray(frame)
    scale = SHARPNESS_SHORT_SIDE / min(picture.size)
    if scale >= 1:
        return frame
    return np.asarray(picture.resize((round(picture.width * scale), round(picture.height * scale)), reducing_gap=2.0))


class PictureScorer:
    """Measures of the first, middle and last frame that need no weights."""

    name = "picture"
    resources = Resources()

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, ())
        self._tool = tool_version("opencv", ("opencv-python-headless", "opencv-python"))

    def score(self, clip: ClipFrames) -> list[ScoreRecord]:
        """`sharpness` in grey levels squared, `colourfulness`, `brightness` and `black_border` from 0 to 1."""
        frames = clip.first_middle_last()
        values = {
            "sharpness": float(np.median([sharpness(_shrunk(frame)) for frame in frames])),
            "colourfulness": float(np.median([colourfulness(_shrunk(frame)) for frame in frames])),
            "brightness": float(np.median([luma(frame).mean() / 255 for frame in frames])),
            "black_border": black_border(frames),
        }
        return score_records(clip.clip_id, values, self._tool)

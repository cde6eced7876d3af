"""Captions from what can be measured in a picture: honest, and named as that.

No captioner's weights are at hand, so the mini text tower learns a small language of measured attributes: brightness,
the leading colour, how busy the picture is, where it is brightest, and whether it is film or photograph.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.media.video import Frames

_HUES = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
_HUE_EDGES = (15, 40, 70, 160, 200, 260, 300, 345)


def attribute_caption(picture: Frames, kind: str) -> str:
    """A caption of an RGB picture [H, W, 3]: `a bright green film frame, busy, lighter at the top`."""
    unit = np.asarray(picture[::4, ::4], np.float32) / np.float32(255)
    luma = unit @ np.array([0.299, 0.587, 0.114], np.float32)
    level = float(luma.mean())
    brightness = "dark" if level < 0.25 else "dim" if level < 0.42 else "bright" if level < 0.62 else "very bright"
    edges = float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean())
    detail = "plain" if edges < 0.05 else "detailed" if edges < 0.10 else "busy"
    noun = "film frame" if kind == "shot" else "photograph"
    return f"a {brightness} {_colour(unit)} {noun}, {detail}, lighter {_lightest_side(luma)}"


def _colour(unit: np.ndarray[Any, np.dtype[Any]]) -> str:
    mean = unit.reshape(-1, 3).mean(0)
    high, low = float(mean.max()), float(mean.min())
    if high - low < 0.05:
        return "grey"
    red, green, blue = (float(c) for c in (mean - low) / (high - low))
    sectors = {0: (green - blue) % 6, 1: blue - red + 2, 2: red - green + 4}
    hue = 60 * sectors[int(mean.argmax())]
    return next((name for name, edge in zip(_HUES, _HUE_EDGES, strict=True) if hue < edge), "red")


def _lightest_side(luma: np.ndarray[Any, np.dtype[Any]]) -> str:
    height, width = luma.shape
    sides = {
        "at the top": luma[: height // 3].mean(),
        "at the bottom": luma[-(height // 3) :].mean(),
        "on the left": luma[:, : width // 3].mean(),
        "on the right": luma[:, -(width // 3) :].mean(),
        "in the middle": luma[height // 3 : -(height // 3), width // 3 : -(width // 3)].mean(),
    }
    return max(sides, key=lambda side: float(sides[side]))

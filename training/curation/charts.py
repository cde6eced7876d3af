"""The pictures of the curation report: histograms as inline SVG, thumbnails as inline JPEG and moving WebP."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.curation.filter import Array
from training.curation.frames import decode

WIDTH, HEIGHT, FOOT = 340, 110, 16
BINS = 40
KEPT, DROPPED = "#3b7dd8", "#d9822b"
THUMBNAIL_WIDTH = 168
MOVING_FRAMES, FRAME_MS = 8, 140
"""Of a thumbnail that plays."""


def histogram(values: Array, low: float, high: float) -> str:
    """An SVG of values [N] (NaN left out); what lies outside [low, high] is drawn as dropped.

    Long tails are cut at the 99.5th percentile: what is beyond is counted in the last bar.
    """
    present = values[~np.isnan(values)]
    if not len(present):
        return "<p class='none'>not scored</p>"
    first, last = float(present.min()), float(np.quantile(present, 0.995))
    last = last if last > first else first + max(abs(first), 1.0) * 1e-3
    edges = np.linspace(first, last, BINS + 1)
    inside = (present >= low) & (present <= high)
    clipped = np.clip(present, first, last)
    below, _ = np.histogram(clipped[~inside], edges)
    above, _ = np.histogram(clipped[inside], edges)
    tallest = max(1, int((below + above).max()))
    step = WIDTH / BINS
    bars = []
    for index, (gone, stays) in enumerate(zip(below, above, strict=True)):
        tops = HEIGHT * stays / tallest, HEIGHT * gone / tallest
        bars.append(_bar(index * step, HEIGHT - tops[0], step, tops[0], KEPT))
        bars.append(_bar(index * step, HEIGHT - tops[0] - tops[1], step, tops[1], DROPPED))
    marks = "".join(_mark((limit - first) / (last - first), limit) for limit in (low, high) if math.isfinite(limit))
    foot = f"<text x='0' y='{HEIGHT + 13}'>{first:.3g}</text>"
    foot += f"<text x='{WIDTH}' y='{HEIGHT + 13}' text-anchor='end'>{last:.3g}</text>"
    size = f"viewBox='0 0 {WIDTH} {HEIGHT + FOOT}' width='{WIDTH}' height='{HEIGHT + FOOT}'"
    return f"<svg {size} role='img'>{''.join(bars)}{marks}{foot}</svg>"


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    if height <= 0:
        return ""
    return f"<rect x='{x:.1f}' y='{y:.1f}' width='{width - 0.6:.1f}' height='{height:.1f}' fill='{colour}'/>"


def _mark(share: float, limit: float) -> str:
    if not 0 <= share <= 1:
        return ""
    x, anchor = share * WIDTH, "end" if share > 0.6 else "start"
    line = f"<line x1='{x:.1f}' y1='0' x2='{x:.1f}' y2='{HEIGHT}' stroke='#c0392b' stroke-width='1.4'/>"
    return line + f"<text x='{x + (-4 if share > 0.6 else 4):.1f}' y='10' text-anchor='{anchor}'>{limit:.3g}</text>"


def thumbnail(path: Path, frames: int) -> str:
    """A video file's middle frame, and the clip to be shown when pointed at: two <img> with the pictures inside.

    Args:
        path: the file.
        frames: how many it has.

    Raises:
        DataError: the file gives no frames.
    """
    wanted = {round(number * (frames - 1) / (MOVING_FRAMES - 1)) for number in range(MOVING_FRAMES)}
    middle: Image.Image | None = None
    moving: list[Image.Image] = []
    for index, (one, _) in enumerate(decode(path)):
        if index not in wanted and index != frames // 2 and middle is not None:
            continue
        height, width = one.size
        picture = Image.fromarray(one.rgb(max(2, round(height * THUMBNAIL_WIDTH / width)), THUMBNAIL_WIDTH))
        if index <= frames // 2:
            middle = picture
        moving.append(picture)
    assert middle is not None  # decode gives a frame or raises
    still = _inline(middle, "JPEG", "image/jpeg", quality=72)
    if len(moving) < 2:
        return f"<img alt='' src='{still}'>"
    clip = _inline(
        moving[0], "WEBP", "image/webp", quality=60, save_all=True, append_images=moving[1:], duration=FRAME_MS, loop=0
    )
    both = f"<img alt='' src='{still}'><img class='clip' alt='the clip' src='{clip}'>"
    return f"<span class='plays' tabindex='0'>{both}</span>"


def _inline(picture: Image.Image, format: str, kind: str, **options: Any) -> str:
    sink = io.BytesIO()
    picture.save(sink, format=format, **options)
    return f"data:{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"

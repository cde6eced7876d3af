"""TransNet V2 (Soucek and Lokoc 2020, arXiv 2008.04838) as the other cut detector: slower, and learned.

It is shown windows of 100 frames of which the middle 50 count (section 3.2). A run of frames that it takes for part of
a transition is one cut: hard, if at most two frames long.

Legend: T frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.media.video import Frames
from training.curation.cuts import small_frames
from training.curation.records import Cut, CutKind
from training.metrics.transnet import load_transnet, shrink

WINDOW, KEPT = 100, 50
THRESHOLD = 0.5
HARD_FRAMES = 2
"""A transition that is seen on no more frames than this is a hard cut: the frame before it, and maybe the one after."""

Probabilities = NDArray[np.float32]


def probabilities(frames: Iterable[Frames]) -> Probabilities:
    """For each frame, how likely it is the last before a cut or in the middle of a transition: [T]."""
    network = load_transnet()
    small = [shrink(frame[None])[0] for frame in frames]
    margin = (WINDOW - KEPT) // 2
    padded = [small[0]] * margin + small + [small[-1]] * (margin + KEPT)
    out: list[Probabilities] = []
    with torch.inference_mode():
        for first in range(0, len(small), KEPT):
            window = torch.stack(padded[first : first + WINDOW])[None]
            one, _ = network(window)
            out.append(torch.sigmoid(one)[0, margin : margin + KEPT].numpy())
    return np.concatenate(out)[: len(small)]


def to_cuts(likely: Probabilities, times_s: list[float], source: str) -> list[Cut]:
    """One cut for each run of frames above the threshold; the new scene begins with the frame after the run."""
    above = np.concatenate([[False], likely > THRESHOLD, [False]])
    edges = np.flatnonzero(np.diff(above.astype(np.int8)))
    cuts = []
    for first, past in zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True):
        if past >= len(times_s):
            continue
        kind: CutKind = "hard" if past - first <= HARD_FRAMES else "dissolve"
        peak = first + int(likely[first:past].argmax())
        hard = times_s[min(peak + 1, len(times_s) - 1)]
        start, end = (hard, hard) if kind == "hard" else (times_s[first + 1], times_s[past])
        score = float(likely[first:past].max())
        cuts.append(Cut(source, (start + end) / 2, start, end, kind, score, f"TransNetV2 at {THRESHOLD}", "transnet"))
    return cuts


def find_cuts_transnet(path: Path, source: str) -> list[Cut]:
    """The cuts of a file, by TransNet V2.

    Raises:
        DataError: the file cannot be decoded, or the weights cannot be fetched.
    """
    times: list[float] = []

    def frames() -> Iterable[Frames]:
        for frame, time in small_frames(path):
            times.append(time)
            yield frame

    return to_cuts(probabilities(frames()), times, source)

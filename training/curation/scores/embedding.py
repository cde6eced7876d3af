"""Near-duplicates: what each clip looks like as a vector, and how like an earlier clip it is.

`embedding` is TransNet V2's last hidden layer averaged over FRAMES frames at even distances (metrics.transnet).
`near_duplicate` compares the vectors of all clips, once all are there: the highest cosine, after the dataset's mean
vector is taken away, with any clip of smaller id; 0 at least. Of a group of copies the one with the smallest id reads
low and is kept, whatever order the work was done in.

Legend: N clips, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.curation.frames import SAMPLED_FPS, ClipFrames
from training.curation.protocols import known_options
from training.curation.records import Resources, ScoreRecord, ToolOptions, score_records, unscored_records

Array = np.ndarray[Any, np.dtype[np.float32]]

FRAMES = 8
BLOCK = 2048
FEW = 8
"""A mean vector of fewer clips than this says more about the clips than about the network; it is not taken away."""


class EmbeddingScorer:
    """A vector that says what the clip looks like and how it moves."""

    name = "embedding"
    resources = Resources()

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, ())
        import torch

        from training.data.sources import TRANSNET, sha256_of, wheel_member
        from training.metrics.transnet import WEIGHTS, load_transnet

        self._network = load_transnet()
        self._weights = sha256_of(wheel_member(TRANSNET, WEIGHTS))
        self._tool = f"TransNet V2 last hidden layer, {FRAMES} frames, torch {torch.__version__}"

    def score(self, clip: ClipFrames) -> list[ScoreRecord]:
        """`embedding`: its `vector` [1024]; its value is the vector's length."""
        from training.metrics.transnet import clip_features

        frames = clip.at_fps(SAMPLED_FPS)
        sampled = frames[np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
        vector = clip_features(sampled, self._network)
        record = ScoreRecord(
            clip.clip_id,
            "embedding",
            float(np.linalg.norm(vector)),
            None,
            self._tool,
            self._weights,
            tuple(float(one) for one in vector.astype(np.float32)),
        )
        return [record]


def nearest_earlier(vectors: Array) -> Array:
    """For each row of [N, D], the highest cosine with any row before it, 0 at least: [N]."""
    centred = vectors - vectors.mean(axis=0) if len(vectors) >= FEW else vectors
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    nearest = np.zeros(len(unit), np.float32)
    for first in range(0, len(unit), BLOCK):
        rows = unit[first : first + BLOCK]
        cosines = rows @ unit[: first + len(rows)].T
        later = np.arange(cosines.shape[1])[None] >= (first + np.arange(len(rows)))[:, None]
        cosines[later] = 0
        nearest[first : first + len(rows)] = cosines.max(axis=1)
    return np.clip(nearest, 0, 1)


class DuplicateScorer:
    """How like an earlier clip each clip is."""

    name = "near_duplicate"

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, ())

    def score_all(self, scores: Sequence[ScoreRecord]) -> list[ScoreRecord]:
        """`near_duplicate`, from 0 to 1, of every clip that has an embedding."""
        records = sorted((one for one in scores if one.name == "embedding"), key=lambda one: one.clip_id)
        embedded = [one for one in records if one.vector]
        out: list[ScoreRecord] = []
        for one in records:
            if not one.vector:
                out += unscored_records(one.clip_id, (self.name,), "it has no embedding", "cosine", one.weights_sha256)
        if embedded:
            nearest = nearest_earlier(np.array([one.vector for one in embedded], np.float32))
            for one, value in zip(embedded, nearest, strict=True):
                out += score_records(
                    one.clip_id, {self.name: float(value)}, f"cosine of: {one.tool}", one.weights_sha256
                )
        return out

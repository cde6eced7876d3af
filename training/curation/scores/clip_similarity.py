"""CLIP similarity between a clip's caption and its first, middle and last frame (paper, appendix C).

The mean cosine over the three frames, for the caption of the first captioner that gave one, in the order of CAPTIONERS.
Captions made from measurements (`measured`) are left out: a phrase about brightness says nothing that CLIP could judge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.curation.protocols import MEASURED, known_options
from training.curation.records import CaptionRecord, ScoreRecord, ToolOptions, score_records, unscored_records
from training.curation.scores.clip import EMBEDDING, NO_CLIP, ClipTowers

BATCH = 64


class ClipSimilarityScorer:
    """Mean cosine of caption and frames; its CLIP must be the one that the clips' vectors come from."""

    name = "clip_similarity"

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, ("weights",))
        self._towers = ClipTowers(options["weights"]) if "weights" in options else None

    def score_captions(self, scores: Sequence[ScoreRecord], captions: Sequence[CaptionRecord]) -> list[ScoreRecord]:
        """`clip_similarity`, from -1 to 1, of every clip that has a record of a CLIP vector."""
        embedded = sorted((one for one in scores if one.name == EMBEDDING), key=lambda one: one.clip_id)
        captioned: dict[str, str] = {}
        for caption in captions:
            if caption.text and caption.captioner != MEASURED:
                captioned.setdefault(caption.clip_id, caption.text)
        if self._towers is None:
            return [bad for one in embedded for bad in unscored_records(one.clip_id, (self.name,), NO_CLIP, "CLIP")]
        out: list[ScoreRecord] = []
        able: list[ScoreRecord] = []
        for one in embedded:
            reason = self._obstacle(one, captioned)
            if reason is None:
                able.append(one)
            else:
                out += unscored_records(
                    one.clip_id, (self.name,), reason, self._towers.tool, self._towers.weights_sha256
                )
        for first in range(0, len(able), BATCH):
            out += self._scored(able[first : first + BATCH], captioned)
        return sorted(out, key=lambda one: one.clip_id)

    def _obstacle(self, record: ScoreRecord, captioned: dict[str, str]) -> str | None:
        assert self._towers is not None
        if not record.vector:
            return "it has no CLIP vector"
        if record.weights_sha256 != self._towers.weights_sha256:
            return "its CLIP vector comes from other weights (give clip and clip_similarity the same)"
        return None if record.clip_id in captioned else "it has no caption of a captioner"

    def _scored(self, records: Sequence[ScoreRecord], captioned: dict[str, str]) -> list[ScoreRecord]:
        assert self._towers is not None
        texts = self._towers.texts([captioned[one.clip_id] for one in records])
        vectors = np.array([one.vector for one in records], np.float32)
        values = np.einsum("nd,nd->n", texts, vectors)
        tool, weights = self._towers.tool, self._towers.weights_sha256
        pairs = zip(records, values, strict=True)
        return [
            record for one, v in pairs for record in score_records(one.clip_id, {self.name: float(v)}, tool, weights)
        ]

"""The held-out split: which footage no training may ever see.

Every eighth shot that starts within 0-487 s of the film (the rest is credits, not footage) and every third photograph,
counted in order of name, are held out from everything: autoencoder, encoders and denoisers. A held-out range is
recorded as (source hash, start, end) and carried by the data itself; `refuse_held_out` guards every training run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from model.errors import DataError

CREDITS_START_S = 487.0
SHOT_STRIDE = 8
PHOTO_STRIDE = 3


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one source: [start_s, end_s) of the file with this SHA-256; a photograph is (0, 0)."""

    source: str
    start_s: float
    end_s: float

    def overlaps(self, other: Span) -> bool:
        """Whether any moment is in both."""
        if self.source != other.source:
            return False
        still = self.start_s == self.end_s or other.start_s == other.end_s
        return still or (self.start_s < other.end_s and other.start_s < self.end_s)


def shot_split(index: int, start_s: float) -> str:
    """`train`, `heldout` or `credits`, for the film's shot number `index` that starts at `start_s`."""
    if start_s >= CREDITS_START_S:
        return "credits"
    return "heldout" if index % SHOT_STRIDE == SHOT_STRIDE - 1 else "train"


def photo_split(index: int) -> str:
    """`train` or `heldout`, for the photograph number `index` in order of name."""
    return "heldout" if index % PHOTO_STRIDE == PHOTO_STRIDE - 1 else "train"


def refuse_held_out(used: Iterable[Span], held_out: Iterable[Span]) -> None:
    """Stop a training run that would read held-out footage.

    Raises:
        DataError: naming the first span that overlaps.
    """
    spans = list(held_out)
    for span in used:
        for other in spans:
            if span.overlaps(other):
                raise DataError(
                    f"{span.source[:12]} {span.start_s:.2f}-{span.end_s:.2f} s is held out from training "
                    f"({other.start_s:.2f}-{other.end_s:.2f} s); take it out of the training set",
                    code="held_out",
                )

"""The held-out split: which footage no training may ever see.

Of the starter dataset, every eighth shot that starts within 0-487 s of the film (the rest is credits, not footage) and
every third photograph, counted in order of name, are held out from everything: autoencoder, encoders and denoisers. A
held-out range is recorded as (source hash, start, end) and carried by the data itself; `refuse_held_out` guards every
training run.

In a curated dataset the film's held-out shots stay held out however it is cut: a clip that shares a moment with one is
held out too. Of any other source, one minute in eight is, by the source's hash, with every clip that touches it: a few
neighbouring shots together, since shots of one scene look alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from model.errors import DataError
from training.data.sources import FILM_SHA256

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


FILM_FPS = 24
FILM_HELD_OUT = (
    (1531, 1666),
    (2394, 2494),
    (3578, 3744),
    (4227, 4266),
    (4726, 4796),
    (5292, 5371),
    (6048, 6088),
    (6348, 6388),
    (6833, 7013),
    (7500, 7546),
    (8085, 8154),
    (9420, 9468),
    (9987, 10016),
    (10303, 10339),
    (10842, 10999),
)
"""First frame of each held-out shot of the film, and the one after its last, as the starter dataset has them."""
BLOCK_S = 60.0
ONE_IN = 8


def film_spans() -> list[Span]:
    """The film's held-out stretches."""
    return [Span(FILM_SHA256, first / FILM_FPS, past / FILM_FPS) for first, past in FILM_HELD_OUT]


def clip_split(source: str, start_s: float, end_s: float) -> str:
    """`train`, `heldout` or (the film's last part) `credits`, for a clip of the source with that hash."""
    span = Span(source, start_s, end_s)
    if source == FILM_SHA256:
        if start_s >= CREDITS_START_S:
            return "credits"
        return "heldout" if any(span.overlaps(held) for held in film_spans()) else "train"
    blocks = range(int(start_s // BLOCK_S), int(end_s // BLOCK_S) + 1)
    return "heldout" if any(_held_out(source, block) for block in blocks) else "train"


def _held_out(source: str, block: int) -> bool:
    return hashlib.sha256(f"{source}:{block}".encode()).digest()[0] % ONE_IN == 0

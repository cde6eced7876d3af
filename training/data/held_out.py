"""Which clips of a curated dataset are held out from training.

The film's held-out shots (training.data.split) stay held out however it is cut: a clip that shares a moment with one is
held out too. Of any other source, one minute in eight is, by the source's hash, with every clip that touches it: a few
neighbouring shots together, since shots of one scene look alike.
"""

from __future__ import annotations

import hashlib

from training.data.sources import FILM_SHA256
from training.data.split import CREDITS_START_S, Span

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

"""A simulated voter, for tests of the road from pairs to thresholds; never a stand-in for people.

It prefers subsets by strengths it is given, as Bradley-Terry says; it passes attention checks. Its votes carry the kind
`simulated`, which every output names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from training.curation.calibrate.votes import VoteBook


def simulate(book: VoteBook, voter: str, strengths: Mapping[str, float], seed: int, most: int = 100_000) -> int:
    """Let the voter answer every pair it is offered; returns how many.

    Args:
        strengths: by subset (`motion/25`), in natural units of Bradley-Terry.
    """
    rng, name = np.random.default_rng(seed), f"simulated {voter}"
    answered = 0
    while answered < most and (pair := book.next_pair(name)) is not None:
        side = pair.answer
        if not side:
            left, right = (strengths["/".join(clip.split("/")[:2])] for clip in (pair.left, pair.right))
            side = "left" if rng.random() < 1 / (1 + math.exp(right - left)) else "right"
        book.add(pair.id, side, name, "simulated")
        answered += 1
    return answered

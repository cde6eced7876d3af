"""Which pairs of clips people are asked about: every pair of subsets of an axis, on every still, for each question.

A pair shows two clips made from one still by proxies trained on two subsets. Which of them stands on the left is drawn
from the pair's own hash, and nothing that a voter's browser is given tells subset, axis or side: only the pair's id.
An attention check shows a clip beside a spoilt copy of itself (its frames out of order and blurred): its answer is
known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

QUESTIONS = {
    "quality": "Which clip looks better?",
    "following": "Which clip keeps closer to the picture it starts from?",
}
CHECK_EVERY = 12
"""One attention check to so many real pairs."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two clips side by side and one question.

    Args:
        id: what the browser sees; 16 hex digits.
        left, right: names of clips, `AXIS/SHARE/STILL`; a check's spoilt one ends in `/spoilt`.
        still: name of the still both start from.
        answer: `left` or `right` where it is known (an attention check), else empty.
    """

    id: str
    axis: str
    question: str
    still: str
    left: str
    right: str
    answer: str = ""


def clip_name(axis: str, share: float, still: str) -> str:
    """How a proxy's clip is called."""
    return f"{axis}/{share:g}/{still}"


def contender(axis: str, share: float) -> str:
    """How a subset is called where subsets are rated: `motion/12.5`."""
    return f"{axis}/{share:g}"


def plan_pairs(axes: Sequence[str], shares: Sequence[float], stills: Sequence[str], seed: int = 0) -> list[Pair]:
    """All pairs, attention checks among them, in an order that goes round the axes and stills."""
    pairs: list[Pair] = []
    for still in stills:
        for question in QUESTIONS:
            for axis in axes:
                for one, other in combinations(shares, 2):
                    names = clip_name(axis, one, still), clip_name(axis, other, still)
                    pairs.append(_sided(axis, question, still, *names, seed))
    pairs.sort(key=lambda pair: pair.id)
    checks = len(pairs) // CHECK_EVERY
    checked = [pairs[index * CHECK_EVERY] for index in range(checks)]
    return pairs + [_check(pair, seed) for pair in checked]


def _sided(axis: str, question: str, still: str, one: str, other: str, seed: int) -> Pair:
    digest = hashlib.sha256(f"{seed}|{axis}|{question}|{one}|{other}".encode()).hexdigest()
    left, right = (one, other) if int(digest[-1], 16) % 2 else (other, one)
    return Pair(digest[:16], axis, question, still, left, right)


def _check(pair: Pair, seed: int) -> Pair:
    sided = _sided(pair.axis, pair.question, pair.still, pair.left, f"{pair.left}/spoilt", seed)
    answer = "right" if sided.left.endswith("/spoilt") else "left"
    return Pair(sided.id, sided.axis, sided.question, sided.still, sided.left, sided.right, answer)

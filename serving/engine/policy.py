"""Which rows share the next denoiser call: a pure function, tested without a model. Imports no torch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that could be stepped now.

    Args:
        job_id: whose row it is.
        key: its BatchKey; only equal keys share a call.
        arrival: counts requests as they came; unique.
    """

    job_id: str
    key: Hashable
    arrival: int


def choose(candidates: Sequence[Candidate], largest: int) -> tuple[str, ...]:
    """The job ids of the next call: the earliest arrival, and those after it with the same key, up to `largest`.

    So the earliest request always makes progress, and nobody waits for a batch to fill.
    """
    in_order = sorted(candidates, key=lambda candidate: candidate.arrival)
    return tuple(candidate.job_id for candidate in in_order if candidate.key == in_order[0].key)[:largest]

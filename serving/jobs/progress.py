"""How far a job is, in per cent: a fixed share for each phase, filled by what the engine really did.

A chained job has two stages: the phases before `interpolate` share what the first one has of the work.
"""

from __future__ import annotations

from typing import Final

_START: Final[dict[str, int]] = {"queued": 0, "encode": 1, "denoise": 3, "decode": 85, "mux": 97}
_END: Final[dict[str, int]] = {"queued": 0, "encode": 3, "denoise": 85, "decode": 97, "mux": 99}


def percent(phase: str, done: int = 0, total: int = 1, first: float = 1.0) -> int:
    """Per cent for `done` of `total` units within `phase`; 100 is kept for a completed job.

    Args:
        first: the first stage's part of the work: 1 where there is no second.

    Raises:
        KeyError: no such phase.
    """
    if phase == "interpolate":
        start, end = _START["mux"] * first, float(_START["mux"])
    else:
        scale = 1.0 if phase == "mux" else first
        start, end = _START[phase] * scale, _END[phase] * scale
    share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
    return int(start + (end - start) * share)

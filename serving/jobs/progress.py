"""How far a job is, in per cent: a fixed share for each phase, filled by what the engine really did."""

from __future__ import annotations

from typing import Final

_START: Final[dict[str, int]] = {"queued": 0, "encode": 1, "denoise": 3, "decode": 85, "mux": 97}
_END: Final[dict[str, int]] = {"queued": 0, "encode": 3, "denoise": 85, "decode": 97, "mux": 99}


def percent(phase: str, done: int = 0, total: int = 1) -> int:
    """Per cent for `done` of `total` units within `phase`; 100 is kept for a completed job.

    Raises:
        KeyError: no such phase.
    """
    start, end = _START[phase], _END[phase]
    share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
    return start + int((end - start) * share)

"""Which status may follow which: the one table every change of a job goes through.

    queued -> in_progress -> completed | failed | cancelled | expired
    queued -> cancelled | expired              (before any compute)
    in_progress -> queued                      (the server that ran it is gone; it runs again)

A terminal status is followed by nothing.
"""

from __future__ import annotations

from typing import Final, get_args

from stillmotion.types import TERMINAL_STATUSES, JobStatus

from serving.jobs.errors import IllegalTransition

TRANSITIONS: Final[dict[JobStatus, frozenset[JobStatus]]] = {
    "queued": frozenset({"in_progress", "cancelled", "expired"}),
    "in_progress": frozenset({"completed", "failed", "cancelled", "expired", "queued"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
    "expired": frozenset(),
}
STATUSES: Final[tuple[JobStatus, ...]] = get_args(JobStatus)


def check_transition(job_id: str, before: JobStatus, after: JobStatus) -> None:
    """Raise IllegalTransition unless `after` may follow `before`."""
    if after not in TRANSITIONS[before]:
        raise IllegalTransition(f"job {job_id} is {before} and cannot become {after}")


def is_terminal(status: str) -> bool:
    """Whether nothing follows this status."""
    return status in TERMINAL_STATUSES

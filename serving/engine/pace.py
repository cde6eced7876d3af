"""Measured speed: how long a unit of work takes lately, and so how long what is left will take."""

from __future__ import annotations

_WEIGHT = 0.3
"""Of the newest measurement: follows a change of company within a few steps, without jumping at each."""


class Pace:
    """Seconds a unit, exponentially smoothed."""

    def __init__(self, seconds_per_unit: float | None = None) -> None:
        self._seconds_per_unit = seconds_per_unit

    def observe(self, seconds: float, units: float) -> None:
        """`units` (> 0) of work took `seconds`."""
        latest = seconds / units
        known = self._seconds_per_unit
        self._seconds_per_unit = latest if known is None else known + _WEIGHT * (latest - known)

    def seconds_for(self, units: float) -> float | None:
        """What `units` of work will take; None before the first measurement."""
        return None if self._seconds_per_unit is None else self._seconds_per_unit * units

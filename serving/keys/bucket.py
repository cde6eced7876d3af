"""A token bucket: so many at once, refilled evenly. Pure; the clock is the caller's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """Full at first.

    Args:
        capacity: how many may come at once.
        per_second: how fast it refills.
    """

    capacity: float
    per_second: float
    level: float
    at: float

    @classmethod
    def per_minute(cls, limit: int, now: float) -> Bucket:
        """A minute's worth at once, refilled over a minute."""
        return cls(float(limit), limit / 60, float(limit), now)

    def take(self, now: float) -> float:
        """Take one: 0.0 if there was one, else seconds until there is (and nothing is taken).

        A clock that steps back adds nothing.
        """
        self._refill(now)
        if self.level >= 1:
            self.level -= 1
            return 0.0
        return (1 - self.level) / self.per_second

    def charge(self, more: int, now: float) -> None:
        """Take so many more for what was let in as one; where there are not so many, the rest is owed."""
        self._refill(now)
        self.level -= more

    def _refill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + max(0.0, now - self.at) * self.per_second)
        self.at = now

"""When to try again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

RETRIED_STATUSES = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter, which gives way to what the service asks for.

    Args:
        max_retries: further tries after the first; 0 for none.
        first_s: the wait before the first retry; each next doubles it.
        longest_s: the wait never grows beyond this.
        longest_retry_after_s: a Retry-After beyond this is not waited for: the error is raised at once.
        rng: where the jitter comes from.
    """

    max_retries: int = 4
    first_s: float = 0.5
    longest_s: float = 8.0
    longest_retry_after_s: float = 60.0
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def delay(self, attempt: int, retry_after: float | None = None) -> float | None:
        """Seconds to wait after failed attempt number `attempt`, from 0. None: try no more.

        Half of the backoff is random, so that callers who failed together do not come back together. Never sooner than
        `retry_after` seconds, where the service named them.
        """
        if attempt >= self.max_retries:
            return None
        if retry_after is not None and retry_after > self.longest_retry_after_s:
            return None
        backoff = min(self.longest_s, self.first_s * 2.0**attempt)
        jittered = backoff * (0.5 + 0.5 * self.rng.random())
        if retry_after is None:
            return jittered
        return retry_after + 0.1 * jittered

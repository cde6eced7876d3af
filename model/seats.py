"""A CPU's seats: as many pieces of work at once as there are cores for, first come first served.

A place of a denoiser call and a chunk of frames take one each, with half of the cores. Two places and a chunk side by
side would be three on two seats: each waits in the middle of its work, and all three are late.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


class Seats:
    """Safe to use from any thread.

    Args:
        count: pieces at once.
    """

    def __init__(self, count: int) -> None:
        self._changed = threading.Condition()
        self._count = count
        self._came = 0
        self._left = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Within it, a seat is the caller's."""
        with self._changed:
            number = self._came
            self._came += 1
            self._changed.wait_for(lambda: number < self._left + self._count)
        try:
            yield
        finally:
            with self._changed:
                self._left += 1
                self._changed.notify_all()


@cache
def seats(count: int) -> Seats:
    """This process's, since its models share its cores."""
    return Seats(count)

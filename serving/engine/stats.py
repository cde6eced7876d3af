"""What the engine counts: read by tests and by the metrics page. Imports no torch."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot; counts are since the start.

    Args:
        denoiser_calls: calls of the denoiser that succeeded.
        rows_per_call: how many calls served one row, two rows, ...
        places: places of the denoiser's batch used in all (a guided row takes two a call).
        denoise_s: seconds in denoiser calls.
        decode_chunks: chunks of frames decoded.
        decode_s: seconds decoding them.
        completed, failed, cancelled: requests by how they ended.
        waiting, active: requests in the queue, and being encoded, denoised or decoded, now.
    """

    denoiser_calls: int
    rows_per_call: dict[int, int]
    places: int
    denoise_s: float
    decode_chunks: int
    decode_s: float
    completed: int
    failed: int
    cancelled: int
    waiting: int
    active: int

    @property
    def rows_stepped(self) -> int:
        """Row evaluations in all: what solo runs would have made as separate calls."""
        return sum(rows * calls for rows, calls in self.rows_per_call.items())


class Recorder:
    """Counts from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows_per_call: Counter[int] = Counter()
        self._ended: Counter[str] = Counter()
        self._places = self._chunks = 0
        self._denoise_s = self._decode_s = 0.0

    def called(self, rows: int, places: int, seconds: float) -> None:
        """A denoiser call served `rows` rows in `places` places."""
        with self._lock:
            self._rows_per_call[rows] += 1
            self._places += places
            self._denoise_s += seconds

    def decoded(self, seconds: float) -> None:
        """A chunk was decoded."""
        with self._lock:
            self._chunks += 1
            self._decode_s += seconds

    def ended(self, how: str) -> None:
        """A request ended: `Completed`, `Failed` or `CancelledAt`."""
        with self._lock:
            self._ended[how] += 1

    def snapshot(self, waiting: int, active: int) -> EngineStats:
        """The counts now."""
        with self._lock:
            return EngineStats(
                denoiser_calls=self._rows_per_call.total(),
                rows_per_call=dict(self._rows_per_call),
                places=self._places,
                denoise_s=self._denoise_s,
                decode_chunks=self._chunks,
                decode_s=self._decode_s,
                completed=self._ended["Completed"],
                failed=self._ended["Failed"],
                cancelled=self._ended["CancelledAt"],
                waiting=waiting,
                active=active,
            )

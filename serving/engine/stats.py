"""What the engine counts: read by tests and by the metrics page. Imports no torch."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from serving.engine.protocol import CancelledAt, Completed, Failed

_KEPT = 256


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot; counts are since the start.

    Args:
        denoiser_calls: calls of the denoiser that succeeded.
        rows_per_call: how many calls served one row, two rows, ...
        batch_slots: of the denoiser's calls, used in all (a guided row takes two a call).
        denoise_s: seconds in denoiser calls.
        decode_chunks: chunks of frames decoded.
        decode_s: seconds decoding them.
        completed, failed, cancelled: requests by how they ended.
        phase_s: seconds that completed requests spent in each phase, summed.
        eta_errors: of completed requests, (seconds the first estimate said were left, seconds it took); the newest.
        out_of_memory: times that memory ran out and a request failed for it.
        degraded: completed requests whose chunk plan memory changed.
        waiting, active: requests in the queue, and being encoded, denoised or decoded, now.
        encodings: of pictures and prompts, by `KIND computed` and `KIND reused` (model.encoding_cache).
    """

    denoiser_calls: int
    rows_per_call: dict[int, int]
    batch_slots: int
    denoise_s: float
    decode_chunks: int
    decode_s: float
    completed: int
    failed: int
    cancelled: int
    phase_s: dict[str, float]
    eta_errors: tuple[tuple[float, float], ...]
    out_of_memory: int
    degraded: int
    waiting: int
    active: int
    encodings: dict[str, int] = field(default_factory=dict[str, int])

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
        self._batch_slots = self._chunks = 0
        self._denoise_s = self._decode_s = 0.0
        self._phase_s: dict[str, float] = defaultdict(float)
        self._eta_errors: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._out_of_memory = self._degraded = 0

    def called(self, rows: int, batch_slots: int, seconds: float) -> None:
        """A denoiser call served `rows` rows in `batch_slots` slots."""
        with self._lock:
            self._rows_per_call[rows] += 1
            self._batch_slots += batch_slots
            self._denoise_s += seconds

    def decoded(self, seconds: float) -> None:
        """A chunk was decoded."""
        with self._lock:
            self._chunks += 1
            self._decode_s += seconds

    def ran_out(self) -> None:
        """Memory ran out, and a request failed for it."""
        with self._lock:
            self._out_of_memory += 1

    def ended(
        self,
        event: Completed | Failed | CancelledAt,
        timings: Mapping[str, float],
        expected: tuple[float, float] | None,
    ) -> None:
        """A request ended.

        Args:
            timings: seconds in each of its phases.
            expected: when its first estimate was made (time.perf_counter), and what that said was left.
        """
        with self._lock:
            self._ended[type(event).__name__] += 1
            if isinstance(event, Completed):
                for phase, seconds in timings.items():
                    self._phase_s[phase] += seconds
                self._degraded += event.degraded
                if expected is not None:
                    self._eta_errors.append((expected[1], time.perf_counter() - expected[0]))

    def snapshot(self, waiting: int, active: int, encodings: Mapping[str, int] | None = None) -> EngineStats:
        """The counts now."""
        with self._lock:
            return EngineStats(
                denoiser_calls=self._rows_per_call.total(),
                rows_per_call=dict(self._rows_per_call),
                batch_slots=self._batch_slots,
                denoise_s=self._denoise_s,
                decode_chunks=self._chunks,
                decode_s=self._decode_s,
                completed=self._ended["Completed"],
                failed=self._ended["Failed"],
                cancelled=self._ended["CancelledAt"],
                phase_s=dict(self._phase_s),
                eta_errors=tuple(self._eta_errors),
                out_of_memory=self._out_of_memory,
                degraded=self._degraded,
                waiting=waiting,
                active=active,
                encodings=dict(encodings or {}),
            )


@runtime_checkable
class CanBreak(Protocol):
    """An engine that may end for good, with its process; one behind Triton finds other servers."""

    @property
    def broken(self) -> bool:
        """Whether a new process is needed to serve again."""


def is_broken(engine: object) -> bool:
    """Whether a new process is needed to serve again."""
    return isinstance(engine, CanBreak) and engine.broken


@runtime_checkable
class HasStats(Protocol):
    """An engine that counts what it does; one behind Triton leaves that to Triton's own metrics."""

    def stats(self) -> EngineStats | None:
        """Counts since the start; None while not started."""

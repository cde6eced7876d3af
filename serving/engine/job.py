"""One request inside the engine, from the queue to its terminal event. One thread at a time changes it: its phase's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from model.sampling.row import BatchKey, Row
from serving.engine.decoding import Decoding
from serving.engine.loaded import LoadedModel
from serving.engine.pace import Pace
from serving.engine.protocol import EngineEvent, EngineRequest, PhaseStarted

Phase = Literal["queued", "encode", "denoise", "decode", "mux"]


@dataclass(slots=True, eq=False)
class Job:
    """A request and how far it is.

    Args:
        request: what was asked for.
        deliver: hands an event to whoever follows the job; may be called from any thread.
        arrival: counts requests as they came.
        model: the checkpoint it is for.
        key: its rows' BatchKey, known before there is a row.
        row: set by the encode phase.
        resident: whether it counts among the rows in work; a parked one keeps its row and waits.
        decoding: set when the decode phase begins.
        compute_s: its own share of compute: a batched call is split by the places its row took.
        expected_end: (when it was said, seconds left as said then) of the first estimate, to judge estimates by.
        checkpoint_step, checkpoint_at: of the last stored state.
        retried: its last call failed for want of memory, and is being tried again.
        cancel_requested: set from any thread, read between steps.
        ended: a terminal event was delivered.
    """

    request: EngineRequest
    deliver: Callable[[EngineEvent], None]
    arrival: int
    model: LoadedModel
    key: BatchKey
    phase: Phase = "queued"
    row: Row | None = None
    resident: bool = False
    decoding: Decoding | None = None
    timings: dict[str, float] = field(default_factory=dict[str, float])
    pace: Pace = field(default_factory=Pace)
    compute_s: float = 0.0
    position: int = -1
    expected_end: tuple[float, float] | None = None
    checkpoint_step: int = 0
    checkpoint_at: float = field(default_factory=time.perf_counter)
    retried: bool = False
    cancel_requested: bool = False
    ended: bool = False
    submitted: float = field(default_factory=time.perf_counter)
    _since: float = field(default_factory=time.perf_counter)
    _lap: float = 0.0

    @property
    def id(self) -> str:
        """The request's job id."""
        return self.request.job_id

    @property
    def step(self) -> int:
        """Completed solver steps; 0 before there is a row."""
        return 0 if self.row is None else self.row.step

    def enter(self, phase: Phase) -> None:
        """Note how long the phase before took, and announce the new one."""
        self.close_phase()
        self.phase = phase
        self._lap = self._since
        self.deliver(PhaseStarted(phase))

    def close_phase(self) -> None:
        """Note how long the current phase took."""
        now = time.perf_counter()
        self.timings[self.phase] = now - self._since
        self._since = now

    def lap(self) -> float:
        """Seconds since the last lap, or since the phase began: waiting for others included, as the caller feels it."""
        now = time.perf_counter()
        before, self._lap = self._lap, now
        return now - before


def row_of(job: Job) -> Row:
    """The row of a job past its encode phase."""
    assert job.row is not None
    return job.row

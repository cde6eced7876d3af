"""One request inside the engine, from the queue to its terminal event. The worker thread alone changes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from model.sampling.row import Row
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
        model, row: set by the encode phase.
        frames: decoded chunks so far.
        compute_s: its own share of compute: a batched call is split by the places its row took.
        cancel_requested: set from any thread, read between steps.
        ended: a terminal event was delivered.
    """

    request: EngineRequest
    deliver: Callable[[EngineEvent], None]
    arrival: int
    phase: Phase = "queued"
    model: LoadedModel | None = None
    row: Row | None = None
    frames: list[np.ndarray] = field(default_factory=list[np.ndarray])
    timings: dict[str, float] = field(default_factory=dict[str, float])
    pace: Pace = field(default_factory=Pace)
    compute_s: float = 0.0
    position: int = -1
    cancel_requested: bool = False
    ended: bool = False
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

    @property
    def decoded(self) -> int:
        """Frames decoded so far."""
        return sum(map(len, self.frames))

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

"""A request inside the engine and its decode progress: phases, timings, and the chunks of frames decoded so far.

One thread at a time changes a job: the lane of its phase.

Frames are decoded in chunks, and the chunk plan is part of the result (the decoder's temporal convolutions see the
borders). A plan that had to shrink because memory ran out marks the video as degraded, and its manifest lists the
chunks it was made of.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from diffusers import AutoencoderKLTemporalDecoder
from PIL.Image import Image

from model.sampling.row import BatchKey, Row
from model.sampling.solvers import Latents
from model.shapes import ChunkPlan, chunk_sizes
from model.vae import decode_chunk
from serving.engine.loaded_model import LoadedModel
from serving.engine.mux import AheadEncoder
from serving.engine.oom import free_cached_memory, is_out_of_memory, release_traceback
from serving.engine.profile import SmoothedRate
from serving.engine.protocol import EngineEvent, EngineRequest, PhaseStarted

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class DecodeProgress:
    """How far a job's frames are.

    Args:
        total: frames of the clip.
        plan: sizes of the chunks still to decode.
        split: how they were laid out.
        chunks: what is decoded.
        degraded: whether memory made the plan change.
    """

    total: int
    plan: tuple[int, ...]
    chunks: list[np.ndarray] = field(default_factory=list[np.ndarray])
    degraded: bool = False
    split: ChunkPlan = "even"

    @classmethod
    def begin(cls, total: int, largest_chunk: int, split: ChunkPlan = "even") -> DecodeProgress:
        """With nothing decoded yet."""
        return cls(total, chunk_sizes(total, largest_chunk, split), split=split)

    @property
    def done(self) -> int:
        """Frames decoded."""
        return sum(map(len, self.chunks))

    @property
    def complete(self) -> bool:
        """Whether every frame is."""
        return not self.plan

    @property
    def sizes(self) -> list[int]:
        """Sizes of the chunks decoded so far, for the manifest."""
        return [len(chunk) for chunk in self.chunks]

    def frames(self) -> np.ndarray:
        """All of them, [T, H, W, 3] uint8."""
        return np.concatenate(self.chunks)

    def next(self, vae: AutoencoderKLTemporalDecoder, latents: Latents) -> int:
        """Decode one more chunk; returns its frames. Out of memory, the rest is planned in halves of the chunk.

        Raises:
            MemoryError, RuntimeError: not even a single frame fits, or the decoder failed otherwise.
        """
        while True:
            size = self.plan[0]
            try:
                chunk = decode_chunk(vae, latents[self.done : self.done + size])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                release_traceback(error)
            else:
                self.chunks.append(chunk)
                self.plan = self.plan[1:]
                return size
            # After the except block: within it, the error would keep the failed call's activations alive.
            free_cached_memory()
            self.plan = chunk_sizes(self.total - self.done, (size + 1) // 2, self.split)
            self.degraded = True
            logger.warning("a chunk of %d frames does not fit into memory; the rest is decoded as %s", size, self.plan)


Phase = Literal["queued", "encode", "denoise", "decode", "mux"]


@dataclass(slots=True, eq=False)
class Job:
    """A request and how far it is.

    Args:
        request: as it was submitted.
        deliver: hands an event to whoever follows the job; may be called from any thread.
        arrival: counts requests as they came.
        model: the checkpoint it is for.
        key: its rows' BatchKey, known before there is a row.
        pictures: the request's, opened and fitted to the clip by the encode phase.
        row: set by the encode phase.
        resident: whether it counts among the rows in work; a parked one keeps its row and waits.
        decoding: set when the decode phase begins.
        encoder: encodes its chunks as they are decoded; None where that is not possible.
        compute_s: its own share of compute: a batched call is split by the batch slots of its row.
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
    pictures: tuple[Image, ...] = ()
    row: Row | None = None
    resident: bool = False
    decoding: DecodeProgress | None = None
    encoder: AheadEncoder | None = None
    timings: dict[str, float] = field(default_factory=dict[str, float])
    pace: SmoothedRate = field(default_factory=SmoothedRate)
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


def begin_decoding(job: Job) -> DecodeProgress:
    """Lay out the chunks of a denoised job; smaller than requested where the GPU's memory budget requires it."""
    params = job.request.params
    largest = job.model.decode_chunk(params.decode_chunk_size)
    job.decoding = DecodeProgress.begin(params.num_frames, largest, job.model.settings.decode_chunk_plan)
    job.decoding.degraded = largest < params.decode_chunk_size
    return job.decoding

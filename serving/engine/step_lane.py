"""The step lane: encode a request, or take a batch of rows one denoiser evaluation further.

Out of memory, a batch is halved until what is left fits; a row that does not fit alone is tried once more on freed
memory, and then fails alone. Rows are immutable values, so a failed call leaves nothing half done.

A step loop runs at most one call ahead of a GPU. Nothing in a step waits for the device, so an unbounded loop would
queue steps without end: cancel and progress would lag, and its clock would measure the queueing. Waiting for the call
before the one just queued bounds that, and the device always has its next call ready.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from model.errors import InvalidRequest
from model.latent_preview import denoised, preview_jpeg
from model.sampling.row import Row, load_state, save_state
from model.sampling.sampler import advance, batch_size
from serving.engine.decode_lane import begin_decoding
from serving.engine.job import Job, row_of
from serving.engine.oom import BatchSizeBackoff, free_cached_memory, is_out_of_memory
from serving.engine.protocol import Checkpointed, Failed, Previewed, Stepped
from serving.engine.settings import EngineSettings
from serving.engine.stages import check_finite, encode_request
from serving.engine.stats import Recorder


class CallAheadLimiter:
    """Waits on a device's calls, one late. Of one thread."""

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None

    def one_call(self, device: torch.device) -> None:
        """A call was queued on the device: wait for the one before it. On a CPU a call is over when it returns."""
        if device.type != "cuda":
            return
        before, self._last = self._last, torch.cuda.Event()
        self._last.record(torch.cuda.current_stream(device))
        if before is not None:
            before.synchronize()


logger = logging.getLogger(__name__)


class StepLane:
    """Called from the step thread alone.

    Args:
        contained: a block in which an error ends the job and only the job.
        end: ends a job.
    """

    def __init__(
        self,
        settings: EngineSettings,
        batch_backoff: BatchSizeBackoff,
        recorder: Recorder,
        contained: Callable[[Job], AbstractContextManager[None]],
        end: Callable[[Job, Failed], None],
    ) -> None:
        self._settings = settings
        self._batch_backoff = batch_backoff
        self._recorder = recorder
        self._contained = contained
        self._limiter = CallAheadLimiter()
        self._end = end

    def encode(self, job: Job) -> None:
        """The request becomes a row, at its beginning or where a stored state left it.

        Raises:
            StillmotionError: the pictures, the settings or the stored state are at fault.
            MemoryError, RuntimeError: twice in a row.
        """
        job.enter("encode")
        started = time.perf_counter()
        if job.request.previews and job.model.colours is None:
            raise InvalidRequest(f"{job.model.entry.name} has no map to draw previews with", param="previews")
        try:
            row = encode_request(job.model, job.request)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            free_cached_memory()
            row = encode_request(job.model, job.request)
        if job.request.resume_from is not None:
            row = load_state(row, job.request.resume_from)
        seconds = time.perf_counter() - started
        job.row, job.checkpoint_step = row, row.step
        job.compute_s += seconds
        job.checkpoint_at = time.perf_counter()
        job.model.profile.observe_encode(seconds)
        job.enter("denoise")
        if row.done:
            self._finish(job)

    def advance(self, jobs: list[Job]) -> None:
        """One denoiser call for the jobs' rows; in several where memory does not reach."""
        rows = [row_of(job) for job in jobs]
        started = time.perf_counter()
        try:
            advanced = advance(jobs[0].model.denoiser, rows)
            self._limiter.one_call(advanced[0].latents.device)
        except Exception as error:  # noqa: BLE001 - ends as a Failed event, below or in a smaller try
            self._after_failure(jobs, error)
            return
        seconds = time.perf_counter() - started
        slots = batch_size(rows)
        self._recorder.called(len(rows), slots, seconds)
        jobs[0].model.profile.observe_call(jobs[0].key.latent.numel, slots, seconds)
        for job, before, row in zip(jobs, rows, advanced, strict=True):
            with self._contained(job):
                self._stepped(job, row, seconds * len(before.active_conditions) / slots)

    def _after_failure(self, jobs: list[Job], error: Exception) -> None:
        if is_out_of_memory(error):
            free_cached_memory()
            if len(jobs) > 1:
                self._batch_backoff.refuse(jobs[0].key, batch_size([row_of(job) for job in jobs]))
                middle = len(jobs) // 2
                self.advance(jobs[:middle])
                self.advance(jobs[middle:])
                return
            if not jobs[0].retried:
                jobs[0].retried = True
                self.advance(jobs)
                return
        elif len(jobs) > 1:
            logger.warning("a call of %d rows failed, each is tried alone: %s", len(jobs), error)
            for job in jobs:
                self.advance([job])
            return
        with self._contained(jobs[0]):
            raise error

    def _stepped(self, job: Job, row: Row, seconds: float) -> None:
        before = row_of(job)
        job.row, job.retried = row, False
        job.compute_s += seconds
        job.pace.observe(job.lap(), 1)
        if row.step > before.step:
            job.deliver(Stepped(row.step, row.num_steps, self._seconds_left(job)))
            if job.request.previews and job.model.colours is not None:
                job.deliver(Previewed(row.step, preview_jpeg(job.model.colours, denoised(before, row))))
            self._checkpoint(job)
        if row.done:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        check_finite(row_of(job))
        begin_decoding(job)
        job.enter("decode")

    def _checkpoint(self, job: Job) -> None:
        every, now = self._settings.checkpoint_every_s, time.perf_counter()
        if every is not None and now - job.checkpoint_at >= every:
            job.deliver(Checkpointed(job.step, self.stored(job)))
            job.checkpoint_step, job.checkpoint_at = job.step, now

    @staticmethod
    def stored(job: Job) -> bytes:
        """What a Checkpointed event carries."""
        return save_state(row_of(job))

    def _seconds_left(self, job: Job) -> float | None:
        params = job.request.params
        steps = job.pace.seconds_for(row_of(job).evaluations_left)
        decode = job.model.profile.decode_s(params.num_frames * params.height * params.width)
        left = None if steps is None else steps + (decode or 0.0)
        if left is not None and job.expected_end is None:
            job.expected_end = (time.perf_counter(), left)
        return left

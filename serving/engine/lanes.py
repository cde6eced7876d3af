"""The lanes of an engine that use the device: steps, and chunks of frames beside them.

The step lane: encode a request, or take a batch of rows one denoiser evaluation further.

Out of memory, a batch is halved until what is left fits; a row that does not fit alone is tried once more on freed
memory, and then fails alone. Rows are immutable values, so a failed call leaves nothing half done.

A step loop runs at most one call ahead of a GPU. Nothing in a step waits for the device, so an unbounded loop would
queue steps without end: cancel and progress would lag, and its clock would measure the queueing. Waiting for the call
before the one just queued bounds that, and the device always has its next call ready.

The decode lane: chunks of frames beside the step loop, on a thread and, on a GPU, a stream of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from model.errors import InvalidRequest
from model.latent_preview import denoised, preview_jpeg
from model.sampling.row import Row, load_state, save_state
from model.sampling.sampler import advance
from serving.engine.job import Job, begin_decoding, check_finite, encode_request, fitted_pictures, row_of, synchronize
from serving.engine.oom import (
    BatchSizeBackoff,
    free_cached_memory,
    is_device_failure,
    is_out_of_memory,
    release_traceback,
)
from serving.engine.protocol import Checkpointed, Decoded, Failed, Previewed, Stepped
from serving.engine.settings import EngineSettings
from serving.engine.stats import Recorder


@dataclass(frozen=True, slots=True)
class DenoiserCall:
    """What a denoiser call was made for; it is charged with the call's time once that is known."""

    jobs: tuple[Job, ...]
    slots: tuple[int, ...]
    """Of each job's row: 2 where it is guided."""


class CallTimer:
    """Times each denoiser call by the device's own clock, and lets the loop run one call ahead of a GPU. Of one thread.

    On CUDA a call lies between two events, which are read once the next call is queued; each time goes to the call it
    is of, however long the device was idle before. On a CPU a call is over when it returns.
    """

    def __init__(self) -> None:
        self._started_s = 0.0
        self._start: torch.cuda.Event | None = None
        self._pending: tuple[DenoiserCall, torch.cuda.Event, torch.cuda.Event] | None = None

    def start(self, device: torch.device) -> None:
        """The next call is about to be queued."""
        self._started_s = time.perf_counter()
        if device.type == "cuda":
            self._start = torch.cuda.Event(enable_timing=True)
            self._start.record(torch.cuda.current_stream(device))

    def finish(self, device: torch.device, call: DenoiserCall) -> list[tuple[DenoiserCall, float]]:
        """The call was queued: the calls whose seconds are known now, on a GPU the one before."""
        if self._start is None or device.type != "cuda":
            return [(call, time.perf_counter() - self._started_s)]
        end = torch.cuda.Event(enable_timing=True)
        end.record(torch.cuda.current_stream(device))
        measured = self.flush()
        self._pending = (call, self._start, end)
        return measured

    def flush(self) -> list[tuple[DenoiserCall, float]]:
        """Wait for the call that is still running, if one is: it with its seconds."""
        if self._pending is None:
            return []
        call, start, end = self._pending
        self._pending = None
        end.synchronize()
        return [(call, start.elapsed_time(end) / 1000)]


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
        self._timer = CallTimer()
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
        job.pictures = fitted_pictures(job.request)
        row = self._encoded(job)
        if row is None:
            free_cached_memory()
            row = encode_request(job.model, job.request, job.pictures)
        synchronize(job.model.checkpoint.unet.device)
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

    def _encoded(self, job: Job) -> Row | None:
        """The request's row; None where memory ran out, with nothing of the attempt left alive."""
        try:
            return encode_request(job.model, job.request, job.pictures)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_traceback(error)
            return None

    def advance(self, jobs: list[Job]) -> None:
        """One denoiser call for the jobs' rows; in several where memory does not reach.

        Raises:
            RuntimeError: the device failed for good (serving.engine.oom.is_device_failure).
        """
        rows = [row_of(job) for job in jobs]
        device = rows[0].latents.device
        call = DenoiserCall(tuple(jobs), tuple(len(row.active_conditions) for row in rows))
        failure: Exception | None = None
        try:
            self._timer.start(device)
            advanced = advance(jobs[0].model.denoiser, rows)
            measured = self._timer.finish(device, call)
        except Exception as error:  # noqa: BLE001 - ends as a Failed event, below or in a smaller try
            failure = error
        if failure is not None:  # outside of the except block, in which the failed call's activations would stay alive
            self._after_failure(jobs, failure)
            return
        self._charge(measured)
        for job, row in zip(jobs, advanced, strict=True):
            with self._contained(job):
                self._stepped(job, row)

    def _charge(self, measured: list[tuple[DenoiserCall, float]]) -> None:
        """Enter the calls' seconds into the profile, and divide them among the jobs by batch slots."""
        for call, seconds in measured:
            slots, first = sum(call.slots), call.jobs[0]
            self._recorder.called(len(call.jobs), slots, seconds)
            first.model.profile.observe_call(first.key.latent.numel, slots, seconds)
            for job, share in zip(call.jobs, call.slots, strict=True):
                job.compute_s += seconds * share / slots

    def _after_failure(self, jobs: list[Job], error: Exception) -> None:
        if is_device_failure(error):
            raise error
        if is_out_of_memory(error):
            release_traceback(error)
            free_cached_memory()
            if len(jobs) > 1:
                slots = sum(len(row_of(job).active_conditions) for job in jobs)
                self._batch_backoff.refuse(jobs[0].key, slots)
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
            release_traceback(error)
            for job in jobs:
                self.advance([job])
            return
        with self._contained(jobs[0]):
            raise error

    def _stepped(self, job: Job, row: Row) -> None:
        before = row_of(job)
        job.row, job.retried = row, False
        job.pace.observe(job.lap(), 1)
        if row.step > before.step:
            job.deliver(Stepped(row.step, row.num_steps, self._seconds_left(job)))
            if job.request.previews and job.model.colours is not None:
                job.deliver(Previewed(row.step, preview_jpeg(job.model.colours, denoised(before, row))))
            self._checkpoint(job)
        if row.done:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        self._charge(self._timer.flush())  # before the job is handed on, the last call too
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


class DecodeLane:
    """Decodes one chunk at a time. Called from one thread."""

    def __init__(self, settings: EngineSettings, recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def chunk(self, job: Job, *, alone: bool) -> bool:
        """Decode the job's next chunk; whether it was the last.

        Args:
            alone: whether nothing is being denoised; then every core is the decoder's, else half of them.
        """
        assert job.decoding is not None
        settings = self._settings
        torch.set_num_threads(settings.cores if alone and not settings.deterministic else settings.fixed_threads)
        params, vae = job.request.params, job.model.checkpoint.vae
        started = time.perf_counter()
        with self._stream(job.model.checkpoint.unet.device), job.model.decoding():
            size = job.decoding.next(vae, row_of(job).latents)
        seconds = time.perf_counter() - started
        job.compute_s += seconds
        self._recorder.decoded(seconds)
        if alone:
            job.model.profile.observe_decode(size * params.height * params.width, seconds)
        job.deliver(Decoded(job.decoding.done, params.num_frames))
        return job.decoding.complete

    def _stream(self, device: torch.device) -> torch.cuda.StreamContext | nullcontext[None]:
        """The lane's own stream. What it reads is ready: the step lane looked at the finished latents' values."""
        if device.type != "cuda":
            return nullcontext()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return torch.cuda.stream(self._streams[device])

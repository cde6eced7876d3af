"""The step loop: rows of many requests through shared denoiser calls, on one worker thread.

A tick drops what was cancelled, encodes what may enter, makes ONE denoiser call for the group the policy chose, and
decodes one chunk of the earliest finished row; so rows join and leave between any two calls, and decoding never holds
up the steps for longer than a chunk. Encoding a finished video runs beside the loop in a small thread pool. An error
ends the job it belongs to; the others go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from model.errors import InvalidRequest
from model.params import Params
from model.sampling.batch import advance, places
from model.sampling.row import Row
from serving.engine.failures import failed
from serving.engine.job import Job
from serving.engine.loaded import LoadedModel
from serving.engine.pace import Pace
from serving.engine.policy import Candidate, choose
from serving.engine.protocol import CancelledAt, Completed, EngineEvent, EngineRequest, Failed, Queued, Stepped
from serving.engine.result import build_manifest, build_result
from serving.engine.settings import EngineSettings
from serving.engine.stages import check_finite, decode_next, encode_request
from serving.engine.stats import EngineStats, Recorder

logger = logging.getLogger(__name__)


class StepLoop:
    """Serves jobs until told to stop. `submit`, `cancel`, `stop` and `stats` may be called from any thread.

    Args:
        models: what is served, by name.
        settings: limits.
    """

    def __init__(self, models: Mapping[str, LoadedModel], settings: EngineSettings) -> None:
        self._models = models
        self._settings = settings
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._arrivals = 0
        self._stopping = False
        self._recorder = Recorder()
        self._decode_pace: dict[str, Pace] = {name: Pace() for name in models}
        self._mux_pool = ThreadPoolExecutor(settings.mux_threads, thread_name_prefix="stillmotion-mux")

    # From any thread

    def submit(self, request: EngineRequest, deliver: Callable[[EngineEvent], None]) -> None:
        """Queue a request; its events go to `deliver`, from other threads, the last a terminal one.

        Raises:
            InvalidRequest: its job id is already in flight.
        """
        with self._changed:
            if request.job_id in self._jobs:
                raise InvalidRequest(f"job {request.job_id} is already in flight", param="job_id")
            if self._stopping:
                deliver(stopped())
                return
            job = Job(request, deliver, self._arrivals)
            self._arrivals += 1
            self._jobs[job.id] = job
            self._waiting.append(job)
            job.position = len(self._waiting) - 1
            deliver(Queued(job.position))
            self._changed.notify()

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop at the next step boundary; unknown ids are ignored."""
        with self._changed:
            if job_id in self._jobs:
                self._jobs[job_id].cancel_requested = True
                self._changed.notify()

    def stop(self) -> None:
        """Let `run` return after the current step."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def estimate(self, model: str, params: Params) -> float | None:
        """Seconds the request would take alone; None while nothing was measured."""
        decode = self._decode_pace[model].seconds_for(params.shape.pixels)
        return decode and None

    def stats(self) -> EngineStats:
        """The counts now."""
        with self._changed:
            return self._recorder.snapshot(len(self._waiting), len(self._active))

    # On the worker thread

    def run(self) -> None:
        """Tick until stopped. Jobs already being muxed finish; the others end as Failed, so that a queue can retry."""
        ending = stopped()
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._tick()
        except Exception as error:
            logger.exception("the engine's loop broke; its jobs fail and it takes no more")
            ending = Failed("engine_broken", f"the engine broke ({type(error).__name__}: {error}); restart the service")
        finally:
            self.stop()
            self._mux_pool.shutdown(wait=True)
            for job in list(self._jobs.values()):
                self._end(job, ending)

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._active)
            return not self._stopping

    def _tick(self) -> None:
        self._drop_cancelled()
        self._admit()
        self._denoise()
        self._decode()
        self._active = [job for job in self._active if not job.ended and job.phase != "mux"]

    def _drop_cancelled(self) -> None:
        for job in [*self._waiting, *self._active]:
            if job.cancel_requested:
                self._end(job, CancelledAt(job.step, job.compute_s))
        self._active = [job for job in self._active if not job.ended]
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.ended)

    def _admit(self) -> None:
        while len(self._active) < self._settings.max_rows:
            with self._changed:
                if not self._waiting:
                    break
                job = self._waiting.popleft()
                self._active.append(job)
            with self._contained(job):
                self._encode(job)
            self._active = [job for job in self._active if not job.ended]
        with self._changed:
            for position, job in enumerate(self._waiting):
                if job.position != position:
                    job.position = position
                    job.deliver(Queued(position))

    def _encode(self, job: Job) -> None:
        job.enter("encode")
        name = job.request.model
        if name not in self._models:
            raise InvalidRequest(f"no model is called {name!r}; served: {', '.join(self._models)}", param="model")
        started = time.perf_counter()
        job.model = self._models[name]
        job.row = encode_request(job.model, job.request)
        job.compute_s += time.perf_counter() - started
        job.enter("denoise")

    def _denoise(self) -> None:
        jobs = {job.id: job for job in self._active if job.phase == "denoise"}
        candidates = [Candidate(job.id, row_of(job).key, job.arrival) for job in jobs.values()]
        chosen = choose(candidates, self._settings.max_batch)
        if chosen:
            self._advance_together([jobs[job_id] for job_id in chosen])

    def _advance_together(self, jobs: list[Job]) -> None:
        rows = [row_of(job) for job in jobs]
        model = jobs[0].model
        assert model is not None
        started = time.perf_counter()
        try:
            advanced = advance(model.denoiser, rows)
        except Exception as error:  # noqa: BLE001 - ends as a Failed event, below or in the solo try
            if len(jobs) == 1:
                self._end(jobs[0], failed(error))
                return
            # Rows are values, so nothing is half done: step each alone, and only the one at fault fails.
            logger.warning("a call of %d rows failed, each is tried alone: %s", len(jobs), error)
            for job in jobs:
                self._advance_together([job])
            return
        seconds = time.perf_counter() - started
        taken = places(rows)
        self._recorder.called(len(rows), taken, seconds)
        for job, row in zip(jobs, advanced, strict=True):
            with self._contained(job):
                self._stepped(job, row, seconds, share=len(row.conditions) / taken)

    def _stepped(self, job: Job, row: Row, seconds: float, share: float) -> None:
        before = job.step
        job.row = row
        job.compute_s += seconds * share
        job.pace.observe(job.lap(), 1)
        if row.step > before:
            job.deliver(Stepped(row.step, row.total, self._seconds_left(job)))
        if row.done:
            check_finite(row)
            job.enter("decode")

    def _seconds_left(self, job: Job) -> float | None:
        steps = job.pace.seconds_for(row_of(job).evaluations_left)
        decode = self._decode_pace[job.request.model].seconds_for(job.request.params.shape.pixels)
        return None if steps is None else steps + (decode or 0.0)

    def _decode(self) -> None:
        job = min((job for job in self._active if job.phase == "decode"), key=lambda job: job.arrival, default=None)
        if job is None:
            return
        with self._contained(job):
            started = time.perf_counter()
            before = job.decoded
            last = decode_next(job)
            seconds = time.perf_counter() - started
            job.compute_s += seconds
            self._recorder.decoded(seconds)
            params = job.request.params
            self._decode_pace[job.request.model].observe(seconds, (job.decoded - before) * params.height * params.width)
            if last:
                job.enter("mux")
                self._mux_pool.submit(self._mux, job, torch.get_num_threads())

    # On a mux thread

    def _mux(self, job: Job, threads: int) -> None:
        with self._contained(job):
            request, model = job.request, job.model
            assert model is not None
            result = build_result(
                np.concatenate(job.frames),
                params=request.params,
                output_format=request.output_format,
                manifest=build_manifest(model, request.params, request.output_format, threads),
            )
            job.close_phase()
            if job.cancel_requested:
                self._end(job, CancelledAt(job.step, job.compute_s))
            else:
                self._end(job, replace(result, timings=dict(job.timings)))

    # From the worker and the mux threads

    @contextmanager
    def _contained(self, job: Job) -> Iterator[None]:
        """An error in the block ends this job, and only this job."""
        try:
            yield
        except Exception as error:
            logger.warning("job %s failed in phase %s", job.id, job.phase, exc_info=error)
            self._end(job, failed(error))

    def _end(self, job: Job, event: Completed | Failed | CancelledAt) -> None:
        with self._changed:
            if job.ended:
                return
            job.ended = True
            del self._jobs[job.id]
        self._recorder.ended(type(event).__name__)
        job.deliver(event)


def stopped() -> Failed:
    """The terminal event of a job that an engine no longer running cannot finish."""
    return Failed("engine_stopped", "the engine was stopped before the job was done; send it again")


def row_of(job: Job) -> Row:
    """The row of a job past its encode phase."""
    assert job.row is not None
    return job.row

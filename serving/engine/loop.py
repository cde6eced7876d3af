"""The step loop: continuous batching of many requests' rows through shared denoiser calls.

Three lanes run side by side:

    step thread     drops cancelled jobs, then does what the policy says: encode one request, or ONE denoiser call
    decode thread   one chunk of frames at a time, again as the policy says
    mux threads     finished frames become a container

A job belongs to one lane at a time, by its phase; rows join and leave between any two calls. An error ends the job it
belongs to; the others go on. An error after which the device serves nobody breaks the engine: every job ends as
`engine_broken`, and a supervisor restarts it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import torch

from model.errors import InvalidRequest
from model.params import Params
from serving.engine.job import Job, finished_frames, video_manifest
from serving.engine.lanes import DecodeLane, StepLane
from serving.engine.loaded_model import LoadedModel
from serving.engine.mux import AheadEncoder, build_result, encode_ahead
from serving.engine.oom import (
    failure_event,
    free_cached_memory,
    is_device_failure,
    is_out_of_memory,
    release_traceback,
)
from serving.engine.protocol import (
    CancelledAt,
    Checkpointed,
    Completed,
    EngineEvent,
    EngineRequest,
    Failed,
    Queued,
    refuse_chained,
)
from serving.engine.scheduler import Scheduler
from serving.engine.settings import EngineSettings
from serving.engine.stats import EngineStats, Recorder
from serving.engine.warmup import probe

logger = logging.getLogger(__name__)


class StepLoop:
    """Serves jobs until stopped. `submit`, `cancel`, `stop`, `stats` and `healthy` may be used from any thread.

    Args:
        models: what is served, by name.
        settings: limits.
    """

    def __init__(self, models: Mapping[str, LoadedModel], settings: EngineSettings) -> None:
        self._models = models
        self._settings = settings
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._arrivals = 0
        self._stopping = False
        self._healthy = True
        self._broken: Failed | None = None
        self._must_free = False
        self._recorder = Recorder()
        self._scheduler = Scheduler(settings)
        self._steps = StepLane(settings, self._scheduler.batch_backoff, self._recorder, self._contained, self._end)
        self._decoding = DecodeLane(settings, self._recorder)
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
            model = self._models.get(request.model)
            refusal = refuse_chained(request)
            if self._stopping or model is None or refusal is not None:
                deliver(stopped() if self._stopping else refusal or self._unknown(request.model))
                return
            job = Job(request, deliver, self._arrivals, model, model.key(request.params))
            self._arrivals += 1
            self._jobs[job.id] = job
            self._deliver_positions()
            self._changed.notify_all()

    def cancel(self, job_id: str) -> None:
        """Ask that a job stop at the next step boundary; unknown ids are ignored."""
        with self._changed:
            if job_id in self._jobs:
                self._jobs[job_id].cancel_requested = True
                self._changed.notify_all()

    def stop(self) -> None:
        """Let `run` return after the current step."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def estimate(self, model: str, params: Params) -> float | None:
        """Seconds the request would take alone; None while nothing was measured, or for an unknown model."""
        return self._models[model].estimate(params) if model in self._models else None

    def stats(self) -> EngineStats:
        """The counts now."""
        with self._changed:
            waiting = sum(job.phase == "queued" for job in self._jobs.values())
            active = sum(job.phase in ("encode", "denoise", "decode") for job in self._jobs.values())
        return self._recorder.snapshot(waiting, active, self._encodings())

    def _encodings(self) -> dict[str, int]:
        """How often each kind of encoding was computed and reused, all models together."""
        counts: Counter[str] = Counter()
        for model in self._models.values():
            if model.checkpoint.encodings is not None:
                counts.update(model.checkpoint.encodings.counts())
        return dict(counts)

    @property
    def healthy(self) -> bool:
        """False from the moment memory ran out until something has worked again."""
        return self._healthy

    @property
    def broken(self) -> bool:
        """Whether the loop ended by an error that was no single job's."""
        return self._broken is not None

    # On the step thread

    def run(self) -> None:
        """Work until stopped. Jobs already being muxed finish; the others end as Failed, so that a queue can retry."""
        decoding = threading.Thread(target=self._decode_until_stopped, name="stillmotion-decode", daemon=True)
        decoding.start()
        try:
            settings = self._settings
            torch.set_num_threads(settings.fixed_threads if settings.deterministic else settings.cores)
            with torch.inference_mode():
                while self._wait_for_steps():
                    self._tick()
        except Exception as error:  # noqa: BLE001 - logged, and every job ends with it
            self._broke(error)
        finally:
            self.stop()
            decoding.join()
            self._mux_pool.shutdown(wait=True)
            for job in list(self._jobs.values()):
                if self._broken is None and job.step > job.checkpoint_step:
                    job.deliver(Checkpointed(job.step, StepLane.stored(job)))
                self._end(job, self._broken or stopped())

    def _broke(self, error: Exception) -> None:
        """Take no more work. Jobs end as failed; as stopped, to be resumed elsewhere, where the device failed."""
        logger.error("the engine's loop broke; it takes no more jobs", exc_info=error)
        self._healthy = False
        ending = Failed("engine_broken", f"the engine broke ({type(error).__name__}: {error}); restart the service")
        if is_device_failure(error):
            ending = Failed(
                stopped().code, f"the device failed, and the job waits for a restart of the service: {error}"
            )
        self._broken = self._broken or ending

    def _wait_for_steps(self) -> bool:
        def something() -> bool:
            pending = any(job.phase in ("queued", "encode", "denoise") for job in self._jobs.values())
            return self._stopping or pending or not self._healthy

        with self._changed:
            self._changed.wait_for(something)
            return not self._stopping

    def _tick(self) -> None:
        self._free_memory()
        self._drop_cancelled("queued", "denoise")
        with self._changed:
            decision = self._scheduler.next_call(self._jobs.values(), time.perf_counter())
            jobs = [] if decision is None else [self._jobs[job_id] for job_id in decision.job_ids]
            for job_id in decision.park if decision is not None else ():
                self._jobs[job_id].resident = False
            for job in jobs:
                job.resident = True
        if decision is None:
            if not self._healthy:
                self._try_again()
            return
        if decision.kind == "encode":
            self._encode(jobs[0])
        else:
            self._steps.advance(jobs)
        self._settle(jobs)

    def _encode(self, job: Job) -> None:
        with self._contained(job):
            self._steps.encode(job)
        with self._changed:
            self._deliver_positions()

    def _settle(self, jobs: list[Job]) -> None:
        """After a call: finished rows go to the decode lane, and health follows from what worked."""
        with self._changed:
            self._healthy = self._healthy or any(not job.ended for job in jobs)
            if any(job.phase == "decode" for job in jobs):
                self._changed.notify_all()

    def _try_again(self) -> None:
        """Nothing to do and memory ran out before: see whether the device works again."""
        free_cached_memory()
        try:
            for model in self._models.values():
                probe(model)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or bool(self._jobs), timeout=1.0)
            return
        self._healthy = True

    # On the decode thread

    def _decode_until_stopped(self) -> None:
        try:
            while (job := self._next_to_decode()) is not None:
                self._free_memory()
                with self._contained(job), torch.inference_mode():
                    self._decode(job)
        except Exception as error:  # noqa: BLE001 - logged, and every job ends with it
            self._broke(error)
            self.stop()

    def _decode(self, job: Job) -> None:
        with self._changed:
            alone = not any(other.phase in ("encode", "denoise") for other in self._jobs.values())
        assert job.decoding is not None
        if not job.decoding.chunks:
            job.encoder = self._encoder(job)
        complete = self._decoding.chunk(job, alone=alone)
        self._healthy = True
        if job.encoder is not None:
            job.encoder.add(job.decoding.chunks[-1])
        if complete:
            job.enter("mux")
            self._mux_pool.submit(self._mux, job)

    def _encoder(self, job: Job) -> AheadEncoder | None:
        request = job.request
        output_format = None if request.raw else request.output_format
        final = not job.model.entry.task.restores_ends
        return encode_ahead(self._mux_pool, request.params.fps, output_format, request.params.num_frames, final=final)

    def _next_to_decode(self) -> Job | None:
        """The job whose chunk is next; waits for one. None once stopped."""
        while True:
            self._drop_cancelled("decode")
            with self._changed:
                if self._stopping:
                    return None
                decision = self._scheduler.next_chunk(self._jobs.values(), time.perf_counter())
                if decision is not None:
                    return self._jobs[decision.job_ids[0]]
                self._changed.wait()

    # On a mux thread

    def _mux(self, job: Job) -> None:
        with self._contained(job):
            request = job.request
            assert job.decoding is not None
            result = build_result(
                finished_frames(job.model, job.pictures, job.decoding),
                fps=request.params.fps,
                output_format=None if request.raw else request.output_format,
                degraded=job.decoding.degraded,
                manifest=video_manifest(job.model, request.params, request.output_format, job.decoding),
                encoder=job.encoder,
            )
            job.close_phase()
            if job.cancel_requested:
                self._end(job, CancelledAt(job.step, job.compute_s))
            else:
                spent = {"compute": job.compute_s} if request.raw else {}
                self._end(job, replace(result, timings=job.timings | spent))

    # From every lane

    def _free_memory(self) -> None:
        """Give back what a call that did not fit had allocated, before the next one."""
        if self._must_free:
            self._must_free = False
            free_cached_memory()

    def _drop_cancelled(self, *phases: str) -> None:
        with self._changed:
            dropped = [job for job in self._jobs.values() if job.cancel_requested and job.phase in phases]
        for job in dropped:
            self._end(job, CancelledAt(job.step, job.compute_s))

    def _deliver_positions(self) -> None:
        """Deliver the queue position to every job that was not begun, where it changed. Holds the lock."""
        for job_id, position in self._scheduler.positions(self._jobs.values(), time.perf_counter()).items():
            job = self._jobs[job_id]
            if job.position != position:
                job.position = position
                job.deliver(Queued(position))

    @contextmanager
    def _contained(self, job: Job) -> Iterator[None]:
        """An error in the block ends this job, and only this job."""
        try:
            yield
            return
        except Exception as error:
            if is_device_failure(error):
                raise  # it is nobody's fault, and would meet every job
            logger.warning("job %s failed in phase %s", job.id, job.phase, exc_info=error)
            failure, ran_out = failure_event(error), is_out_of_memory(error)
            release_traceback(error)
        if ran_out:
            self._healthy = False
            self._recorder.ran_out()
            self._must_free = True  # later: here the with statement still holds the frames of the failed call
        self._end(job, failure)

    def _end(self, job: Job, event: Completed | Failed | CancelledAt) -> None:
        with self._changed:
            if job.ended:
                return
            job.ended = True
            del self._jobs[job.id]
            self._changed.notify_all()
        self._recorder.ended(event, job.timings, job.expected_end)
        job.deliver(event)

    def _unknown(self, name: str) -> Failed:
        served = ", ".join(self._models)
        return failure_event(InvalidRequest(f"no model is called {name!r}; served: {served}", param="model"))


def stopped() -> Failed:
    """The terminal event of a job that an engine no longer running cannot finish."""
    return Failed("engine_stopped", "the engine was stopped before the job was done; send it again")

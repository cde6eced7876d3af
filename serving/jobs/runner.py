"""Job runner: one job from its lease to its end, its engine events stored as progress, checkpoints and previews.

The end counts only while this server holds the lease. A stopped engine is no end: the job goes back into the queue and
on from its last checkpoint. Progress is in per cent, a fixed share for each phase; of a job with later stages, the
first one's phases share its part of the work, and each later one is a phase of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.exc import OperationalError
from stillmotion.types import Job, JobOutput, OutputFormat, Variant

from model.errors import GenerationFailed, InvalidRequest, StorageFull
from model.stages import NAMES
from model.tasks import TASKS
from serving.background import run_in_thread
from serving.engine.protocol import (
    TERMINAL,
    CancelledAt,
    Checkpointed,
    Completed,
    Decoded,
    Engine,
    EngineEvent,
    EngineRequest,
    Failed,
    PhaseStarted,
    Previewed,
    Queued,
    Stepped,
)
from serving.interpolation.pair_store import stored_names
from serving.interpolation.progress import stage_spans
from serving.interpolation.upscaling import runs_of
from serving.jobs.artifacts import Artifacts
from serving.jobs.errors import DatabaseBusy, LeaseLost
from serving.jobs.leases import Leases
from serving.jobs.notifier import Notifier
from serving.jobs.records import (
    LeasedJob,
    ProgressUpdate,
    StoredFile,
    Success,
    input_names,
    job_urls,
    params_from_json,
    preview_name,
)
from serving.observe.logs import JOBS
from serving.provenance.video_manifest import public

Outcome = Success | Failed | CancelledAt

MEDIA_TYPES: Final[dict[OutputFormat, str]] = {"mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif"}


def store_result(artifacts: Artifacts, request: EngineRequest, result: Completed, attempt: int) -> Success:
    """Store a result's files. Either all are stored or none.

    Args:
        attempt: goes into the names from the second on, so that a server which lost the job in the meantime
            overwrites no file of the one that has it.

    Raises:
        StorageFull: no room.
    """
    media_type = MEDIA_TYPES[request.output_format]
    manifest = json.dumps(public(result.manifest), indent=2, sort_keys=True).encode()
    engine = result.manifest.get("engine")
    mark = "" if attempt == 1 else f".{attempt}"
    contents: dict[Variant, tuple[str, bytes, str]] = {
        "video": (f"video{mark}.{request.output_format}", result.video, media_type),
        "thumbnail": (f"thumbnail{mark}.jpg", result.thumbnail, "image/jpeg"),
        "frames": (f"frames{mark}.png", result.frames, "image/png"),
        "manifest": (f"manifest{mark}.json", manifest, "application/json"),
    }
    files: dict[Variant, StoredFile] = {}
    try:
        for variant, (name, data, kind) in contents.items():
            files[variant] = artifacts.write(request.job_id, name, data, kind)
    except (OSError, StorageFull):
        artifacts.discard(request.job_id, *(name for name, _, _ in contents.values()))
        raise
    output = JobOutput(
        url=job_urls(request.job_id).content,
        sha256=result.video_sha256,
        frames_sha256=result.frames_sha256,
        bytes=len(result.video),
        width=result.width,
        height=result.height,
        num_frames=result.num_frames,
        fps=result.fps,
        degraded=result.degraded,
    )
    return Success(output, files, result.timings, engine if isinstance(engine, dict) else None)


_START: Final[dict[str, int]] = {"queued": 0, "encode": 1, "denoise": 3, "decode": 85, "mux": 97}
_END: Final[dict[str, int]] = {"queued": 0, "encode": 3, "denoise": 85, "decode": 97, "mux": 99}


def percent(
    phase: str, done: int = 0, total: int = 1, first: float = 1.0, span: tuple[float, float] | None = None
) -> int:
    """Per cent for `done` of `total` units within `phase`; 100 is kept for a completed job.

    Args:
        first: the first stage's part of the work: 1 where there is no other.
        span: of a later stage's phase: its part of the work, as begin and end; all that the first leaves if left out.

    Raises:
        KeyError: no such phase.
    """
    if phase in NAMES:
        begin, stop = span or (first, 1.0)
        start, end = _START["mux"] * begin, _START["mux"] * stop
    else:
        scale = 1.0 if phase == "mux" else first
        start, end = _START[phase] * scale, _END[phase] * scale
    share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
    return int(start + (end - start) * share)


_log = logging.getLogger(__name__)
_jobs_log = logging.getLogger(JOBS)
CHECKPOINT_NAME: Final = "checkpoint.safetensors"
ENGINE_STOPPED: Final = "engine_stopped"
"""The code with which an engine lets go of a job it will not finish."""
_TRY_AGAIN_S: Final = 1.0


@dataclass(slots=True)
class RunState:
    """What is remembered of a running job between two events.

    Args:
        spans: the stages' parts of the work, by name.
        steps: of each stage, in order; `steps_before` of those before the present one.
    """

    job: LeasedJob
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    stepped: bool = False
    phase: str = "queued"
    spans: dict[str, tuple[float, float]] = field(default_factory=lambda: {"generate": (0.0, 1.0)})
    steps: dict[str, int] = field(default_factory=dict[str, int])
    steps_before: int = 0
    written_at: float = -math.inf
    preview_at: float = -math.inf

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self.phase = phase
        if phase in NAMES:
            before = list(self.steps)[: list(self.steps).index(phase)]
            self.steps_before = sum(self.steps[name] for name in before)

    def percent(self, phase: str, done: int = 0, total: int = 1) -> int:
        """Per cent of the whole job."""
        return percent(phase, done, total, self.spans["generate"][1], self.spans.get(phase))


class JobRunner:
    """Follows jobs through an engine.

    Args:
        engine: what serves them.
        leases, artifacts: where progress and files are stored.
        notifier: notified of a job at every change.
        step_interval_s: progress within a phase is written at most this often.
    """

    def __init__(
        self, engine: Engine, leases: Leases, artifacts: Artifacts, notifier: Notifier, step_interval_s: float
    ) -> None:
        self._engine = engine
        self._leases = leases
        self._artifacts = artifacts
        self._notifier = notifier
        self._interval = step_interval_s

    async def follow(self, run: RunState) -> None:
        """Follow one job to its end, whatever the end is."""
        job = run.job
        try:
            outcome = await self._outcome(run)
            if isinstance(outcome, Failed):
                self._engine.cancel(job.id)  # the engine may still be at it
            await self._settle(job, outcome)
        except LeaseLost as error:
            self._engine.cancel(job.id)
            _log.warning("%s", error.message)

    async def _outcome(self, run: RunState) -> Outcome:
        try:
            return await self._run(run)
        except GenerationFailed as error:
            return Failed(error.code, error.message)
        except LeaseLost:
            raise
        except Exception:  # noqa: BLE001 - the boundary: one job's surprise must not stop the others
            _log.exception("job %s met an unexpected error", run.job.id)
            return Failed("internal_error", "an unexpected error; the server's log has it under the job's id")

    async def _run(self, run: RunState) -> Outcome:
        """Run a job; its terminal event, with a result's files already stored."""
        try:
            request = await self._request(run.job)
        except (FileNotFoundError, InvalidRequest, KeyError, TypeError) as error:
            _log.exception("job %s cannot be read back", run.job.id)
            return Failed("job_unreadable", f"the stored job cannot be read back: {error}")
        run.spans = stage_spans(self._engine, request.model, request.params, request.stages)
        run.steps = {"generate": request.params.num_inference_steps, **request.stages.steps(request.params)}
        outcome = await self._submit(run, request)
        unusable = isinstance(outcome, Failed) and outcome.code == InvalidRequest.code and not run.stepped
        if unusable and request.resume_from is not None:
            _log.warning("job %s cannot go on from its checkpoint and begins anew: %s", run.job.id, outcome)
            await run_in_thread(self._artifacts.discard, run.job.id, CHECKPOINT_NAME)
            outcome = await self._submit(run, await self._request(run.job))
        return outcome

    async def _submit(self, run: RunState, request: EngineRequest) -> Outcome:
        if run.stop.is_set():
            return CancelledAt(step=0, compute_s=0.0)
        events = self._engine.submit(request)
        try:
            return await self._outcome_of(run, request, events)
        except LeaseLost:
            # Until the engine has let go of the job, this server could not run it again.
            self._engine.cancel(run.job.id)
            async for event in events:
                if isinstance(event, TERMINAL):
                    break
            raise

    async def _outcome_of(self, run: RunState, request: EngineRequest, events: AsyncIterator[EngineEvent]) -> Outcome:
        """The terminal event, a result's files stored; every other one is recorded."""
        async for event in events:
            if isinstance(event, Completed):
                return await run_in_thread(store_result, self._artifacts, request, event, run.job.attempt)
            if isinstance(event, (Failed, CancelledAt)):
                return event
            if run.stop.is_set():  # it may have been asked before the engine knew of the job
                self._engine.cancel(run.job.id)
            await self._record_progress(run, event)
        raise GenerationFailed("the engine ended the job's events without a result")

    async def _request(self, job: LeasedJob) -> EngineRequest:
        params, stages = params_from_json(job.task, job.params)
        names = input_names(len(TASKS[job.task].pictures))
        images = tuple([await run_in_thread(self._artifacts.read, job.id, name) for name in names])
        checkpoint = await run_in_thread(self._checkpoint, job.id)
        identity = (job.id, job.model, params, images, job.output_format, job.share, checkpoint, job.previews)
        return EngineRequest(*identity, stages=stages)

    def _checkpoint(self, job_id: str) -> bytes | None:
        try:
            return self._artifacts.read(job_id, CHECKPOINT_NAME)
        except FileNotFoundError:
            return None

    async def _record_progress(self, run: RunState, event: EngineEvent) -> None:
        """Write progress down: every phase, and within a phase the first, the last and one per interval."""
        match event:
            case Queued(position):
                name, is_boundary = "queued", True
                change = ProgressUpdate("queued", percent("queued"), engine_position=position)
            case PhaseStarted(phase):
                run.enter(phase)
                name, change, is_boundary = "phase", ProgressUpdate(phase, run.percent(phase)), True
            case Stepped(step, total, eta_s):
                run.stepped = True
                phase = run.phase if run.phase in NAMES else "denoise"
                done = run.percent(phase, step, total)
                name, change = "step", ProgressUpdate(phase, done, run.steps_before + step, eta_s)
                is_boundary = step in (1, total)
            case Checkpointed(_, state):
                await self._store_checkpoint(run.job, state)
                return
            case Previewed(step, jpeg):
                await self._store_preview(run, step, jpeg)
                return
            case Decoded(frames, total):
                done = run.percent("decode", frames, total)
                name, change, is_boundary = "decode", ProgressUpdate("decode", done), frames == total
            case _:
                raise TypeError(f"not a progress event: {event!r}")
        now = time.monotonic()
        if is_boundary or now - run.written_at >= self._interval:
            run.written_at = now
            try:
                await run_in_thread(self._leases.advance, run.job, name, change)
            except (DatabaseBusy, OperationalError, StorageFull):
                _log.exception("the progress of job %s cannot be stored now", run.job.id)
            self._notifier.notify(run.job.id)

    async def _store_checkpoint(self, job: LeasedJob, state: bytes) -> None:
        """Store a checkpoint in place of the one before; without it a crash costs more, nothing else."""
        try:
            await run_in_thread(self._artifacts.write, job.id, CHECKPOINT_NAME, state, "application/vnd.safetensors")
        except (OSError, StorageFull):
            _log.exception("a checkpoint of job %s cannot be stored", job.id)

    async def _store_preview(self, run: RunState, step: int, jpeg: bytes) -> None:
        """Store a preview in place of the one before, at most one an interval; without it nothing else is lost."""
        now = time.monotonic()
        if now - run.preview_at < self._interval:
            return
        run.preview_at = now
        job, name = run.job, preview_name(step, run.job.attempt)
        try:
            file = await run_in_thread(self._artifacts.write, job.id, name, jpeg, "image/jpeg")
            before = await run_in_thread(self._leases.preview, job, step, file)
        except (DatabaseBusy, OSError, OperationalError, StorageFull):
            _log.exception("a preview of job %s cannot be stored", job.id)
            return
        except LeaseLost:
            await run_in_thread(self._artifacts.discard, job.id, name)
            raise
        if before is not None and before != name:
            await run_in_thread(self._artifacts.discard, job.id, before)
        self._notifier.notify(job.id)

    async def _settle(self, job: LeasedJob, outcome: Outcome) -> None:
        """Write the end down; a database that cannot be written now is tried until it can.

        Raises:
            LeaseLost: the end does not count; a result's files are removed.
        """
        while True:
            try:
                ended = await run_in_thread(self._end, job, outcome)
            except (DatabaseBusy, OperationalError, StorageFull):
                _log.exception("the end of job %s cannot be stored yet", job.id)
                await asyncio.sleep(_TRY_AGAIN_S)
                continue
            except LeaseLost:
                if isinstance(outcome, Success):
                    names = [file.name for file in outcome.files.values()]
                    await run_in_thread(self._artifacts.discard, job.id, *names)
                raise
            if ended.error is not None and ended.error.code == StorageFull.code:
                await run_in_thread(self._artifacts.remove, job.id)
            elif ended.is_terminal:
                await run_in_thread(self._artifacts.discard, job.id, CHECKPOINT_NAME, *_stage_files(job))
            _log_end(job, ended)
            self._notifier.notify(job.id)
            return

    def _end(self, job: LeasedJob, outcome: Outcome) -> Job:
        if isinstance(outcome, Failed):
            if outcome.code == ENGINE_STOPPED:
                return self._leases.release(job)
            return self._leases.fail(job, outcome.code, outcome.message)
        if isinstance(outcome, CancelledAt):
            return self._leases.stopped(job, outcome.step, outcome.compute_s)
        return self._leases.complete(job, outcome)


def _log_end(job: LeasedJob, ended: Job) -> None:
    """One line a job: how it ended, what it was and what it took; nothing of what its caller wrote."""
    began = ended.started_at or ended.created_at
    fields: dict[str, object] = {
        "job": ended.id,
        "status": ended.status,
        "task": ended.task,
        "model": f"{ended.model}@{ended.model_version}",
        "steps": ended.step,
        "waited_s": round(began - ended.created_at, 1),
        "ran_s": None if ended.completed_at is None else round(ended.completed_at - began, 1),
        "attempt": job.attempt,
        "key": job.share.tenant or None,
        "device": None if ended.engine is None else ended.engine.device_name or ended.engine.device,
        "error": None if ended.error is None else ended.error.code,
    }
    if ended.output is not None:
        fields["frames"], fields["size"] = ended.output.num_frames, f"{ended.output.width}x{ended.output.height}"
    fields = {name: value for name, value in fields.items() if value is not None}
    words = " ".join(f"{name}={value}" for name, value in fields.items() if name not in ("job", "status"))
    _jobs_log.info("%s %s %s", ended.id, ended.status, words, extra=fields)


def _stage_files(job: LeasedJob) -> list[str]:
    """The files of a job's later stages, which are needed until its end; none where there is no such stage."""
    try:
        params, stages = params_from_json(job.task, job.params)
    except (InvalidRequest, KeyError, TypeError):  # stored by another version, which could not be run either
        return []
    if not stages:
        return []
    pairs = 0 if stages.interpolate is None else stages.frames_to_interpolate(params) - 1
    windows = 0 if stages.extend is None else stages.extend.windows
    larger = 0 if stages.upscale is None else runs_of(stages.size(params).num_frames)
    return stored_names(pairs, windows, larger)

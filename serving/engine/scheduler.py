"""The scheduler between the step loop and the policy: jobs become work items with measured costs. Not thread-safe.

There are two lanes: encodings and denoiser calls run on the step thread, decode chunks on the decode thread. Each asks
the policy with a fairness ledger of its own. A lane sees only the tenants that have work in it, so one ledger for both
would forgive a tenant in one lane what it owes in the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from serving.engine.job import Job, row_of
from serving.engine.oom import BatchSizeBackoff, max_batch_size
from serving.engine.policy import FairnessLedger, decide, order
from serving.engine.settings import EngineSettings
from serving.engine.warmup import MAX_MEASURED_BATCH
from serving.engine.work_items import BatchingProfile, Decision, Kind, Limits, WorkItem

_UNKNOWN_S = 1.0
"""A denoiser evaluation before any was measured; only proportions matter then."""


class Scheduler:
    """Decides what is next; every time is in seconds on the caller's clock, the one jobs were submitted by."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._calls = FairnessLedger()
        self._chunks = FairnessLedger()
        self.batch_backoff = BatchSizeBackoff()

    def next_call(self, jobs: Iterable[Job], now: float) -> Decision | None:
        """For the step thread: an encoding, or the rows of a denoiser call."""
        pending = [job for job in jobs if job.phase in ("queued", "encode", "denoise")]
        decision, self._calls = decide(self._items(pending), self._limits(pending, now), self._calls)
        return decision

    def next_chunk(self, jobs: Iterable[Job], now: float) -> Decision | None:
        """For the decode thread: the job whose next chunk is decoded."""
        pending = [job for job in jobs if job.phase == "decode"]
        decision, self._chunks = decide(self._items(pending), self._limits(pending, now), self._chunks)
        return decision

    def positions(self, jobs: Iterable[Job], now: float) -> dict[str, int]:
        """Place in the queue of every job that was not begun; 0 is next."""
        items = self._items([job for job in jobs if job.phase in ("queued", "denoise")])
        waiting = {item.job_id for item in items if item.kind == "encode"}
        queue = [job_id for job_id in order(items, self._limits((), now), self._calls) if job_id in waiting]
        return {job_id: position for position, job_id in enumerate(queue)}

    def _items(self, jobs: Iterable[Job]) -> list[WorkItem]:
        return [self._item(job) for job in jobs]

    def _limits(self, jobs: Iterable[Job], now: float) -> Limits:
        batching: dict[Hashable, BatchingProfile] = {}
        for job in jobs:
            if job.key not in batching:
                batching[job.key] = job_batching(job, self._settings, self.batch_backoff)
        return Limits(now, self._settings.max_rows, batching)

    def _item(self, job: Job) -> WorkItem:
        share = job.request.share
        kind, cost, left = _work(job)
        return WorkItem(
            job.id,
            kind,
            job.key,
            cost_s=cost,
            work_left_s=left + share.beyond_s,
            arrival=job.arrival,
            submitted_s=job.submitted,
            served_s=job.compute_s,
            batch_slots=job.model.batch_slots(job.request.params)
            if job.row is None
            else len(job.row.active_conditions),
            tenant=share.tenant,
            weight=share.weight,
            priority=share.priority,
            deadline_s=None if share.deadline_s is None else job.submitted + share.deadline_s,
            resident=job.resident,
            begun=job.step > 0,
            opened=job.decoding is not None and job.decoding.done > 0,
        )


def job_batching(job: Job, settings: EngineSettings, batch_backoff: BatchSizeBackoff) -> BatchingProfile:
    """What the profile, the settings and memory allow for calls of the job's key."""
    numel, profile = job.key.latent.numel, job.model.profile
    countable = max_batch_size(job.model.checkpoint.unet, job.key.latent, exported=job.model.entry.exported)
    most = min(settings.max_batch or MAX_MEASURED_BATCH, countable)
    most = batch_backoff.of(job.key, most)
    largest = most if settings.max_batch is not None else profile.worth(numel, most)
    return BatchingProfile(max(1, largest), profile.marginal(numel))


def _work(job: Job) -> tuple[Kind, float, float]:
    """What the job's next piece is, its seconds, and the seconds of all that is left."""
    params, profile, numel = job.request.params, job.model.profile, job.key.latent.numel
    pixels = params.height * params.width
    if job.decoding is not None:
        plan = job.decoding.plan
        next_s = profile.decode_s(plan[0] * pixels) or _UNKNOWN_S
        return "decode", next_s, (profile.decode_s(sum(plan) * pixels) or next_s * len(plan))
    if job.row is None:
        left = job.model.estimate(params) or _UNKNOWN_S * params.num_inference_steps
        call = profile.call_s(numel, job.model.batch_slots(params)) or _UNKNOWN_S
        return "encode", call, left
    call = profile.call_s(numel, len(row_of(job).active_conditions)) or _UNKNOWN_S
    decode = profile.decode_s(params.num_frames * pixels) or 0.0
    return "step", call, row_of(job).evaluations_left * call + decode


def _batch_slots(job: Job) -> int:
    return job.model.batch_slots(job.request.params) if job.row is None else len(job.row.active_conditions)

"""Submission: a request becomes a stored job, checked against its checkpoint, quotas, the backlog and its deadline.

Cheap checks come first, and nothing of a refused request is stored.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import uuid4

import httpx2
from stillmotion.types import Job, OutputFormat
from stillmotion.webhooks import secret_bytes

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.media.image import open_picture
from model.params import Params
from model.platform import trim_freed_memory
from model.stages import Stages
from model.tasks import TASKS
from serving.background import run_in_thread, shielded
from serving.engine.protocol import Priority
from serving.gateway import deadlines
from serving.gateway.auth import request_hash
from serving.gateway.images import SPOOLED_BYTES, PictureFile, PictureSource, UploadRef, fitted_png
from serving.gateway.safety import PictureRefused, Verdict
from serving.gateway.services import NOTES_NAME, Services
from serving.gateway.settings import Settings
from serving.interpolation.plan import NO_WISHES, StageWishes, plan_stages, split_frames
from serving.interpolation.progress import estimate
from serving.jobs.dispatcher import QUEUE_TOPIC
from serving.jobs.errors import QueueFull, UploadNotFound
from serving.jobs.records import PRIORITIES, NewJob, WebhookTarget, input_names, params_to_json, total_steps
from serving.jobs.reuse import Origin, clip_identity
from serving.keys import Caller
from serving.net import AddressRefused


def check_webhook(settings: Settings, webhook: WebhookTarget | None) -> None:
    """Refuse a webhook that could never be delivered; its address is resolved and checked when it is.

    Raises:
        InvalidRequest: the URL cannot be read or has another scheme, or there is nothing to sign with.
    """
    if webhook is None:
        return
    try:
        settings.webhook_policy.check_url(httpx2.URL(webhook.url))
    except httpx2.InvalidURL as error:
        raise InvalidRequest(f"webhook.url cannot be read: {error}", param="webhook.url") from error
    except AddressRefused as error:
        raise AddressRefused(error.message, param="webhook.url") from error
    if webhook.secret is None:
        if settings.webhook_secret is None:
            raise InvalidRequest(
                "this server has no webhook secret of its own: give webhook.secret, whsec_ and base64",
                code="missing_field",
                param="webhook.secret",
            )
        return
    try:
        secret_bytes(webhook.secret)
    except ValueError as error:
        raise InvalidRequest(f"webhook.secret: {error}", param="webhook.secret") from error


def check_previews(entry: ModelEntry, requested: bool, able: frozenset[str]) -> None:
    """Refuse previews of a checkpoint that draws none. Raises InvalidRequest."""
    if requested and entry.name not in able:
        can = ", ".join(sorted(able)) or "no model served here"
        raise InvalidRequest(
            f"{entry.name} draws no previews; leave previews out ({can} can)", code="no_previews", param="previews"
        )


_LARGE_PIXELS: Final = 4_000_000
_LARGE_BYTES: Final = 8_000_000
"""What decoding a larger picture took (8 bytes a pixel, and the file) is returned to the system at once."""
_RANDOM_SEEDS: Final = 2**32
"""Seeds drawn here stay exact in JavaScript too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What a caller wants, each field checked by itself and none yet against a checkpoint.

    Args:
        task: which task.
        model: which checkpoint; None for the task's first.
        settings: the task's settings, by name; None or absent: the checkpoint's default.
        pictures: the files, in memory or not, uploads or URLs of them, in the order of the task's spec.
        body: all that the caller sent besides pictures, to tell a repeat from another request.
        webhook: where the news of its end goes.
        stages: what is done to the clip besides.
        reuse: whether a finished job of the same video is as good.
    """

    task: str
    model: str | None
    settings: Mapping[str, Any]
    pictures: tuple[PictureSource, ...]
    body: Mapping[str, Any]
    output_format: OutputFormat = "mp4"
    priority: Priority = "normal"
    deadline_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    webhook: WebhookTarget | None = None
    previews: bool = False
    stages: StageWishes = NO_WISHES
    reuse: bool = False


@dataclass(frozen=True, slots=True)
class FittedPictures:
    """A request's pictures as they are stored.

    Args:
        pngs: fitted to the clip, in the order of the task's spec.
        digests: the SHA-256 of each as it came, before it was fitted.
        verdicts: the safety filter's, JSON-ready.
    """

    pngs: tuple[bytes, ...] = ()
    digests: tuple[bytes, ...] = ()
    verdicts: tuple[dict[str, Any], ...] = ()


async def submit(
    services: Services, caller: Caller, request: JobRequest, idempotency_key: str | None
) -> tuple[Job, Origin]:
    """Store pictures and job, and wake the dispatcher.

    Returns:
        The job, and where it comes from: with `reuse`, an identical finished one of the caller's goes before a new one.

    Raises:
        InvalidRequest: a setting or a picture.
        Conflict: the idempotency key came before with another order.
        QueueFull, QuotaFull: no place is free; with the seconds until one should be.
        UploadNotFound: the caller has no such upload.
        DeadlineInfeasible: it would not be done in time.
        StorageFull: the disk is full.
    """
    check_webhook(services.settings, request.webhook)
    entry, params, stages = _resolve(services, request)
    body_hash = "" if idempotency_key is None else await _body_hash(request)
    new = _new_job(caller, entry, request, params, stages, idempotency_key, body_hash)
    fitted = None
    if request.reuse:
        found, new, fitted = await _reuse(services, request, new, params)
        if found is not None:
            return found
    try:
        previous = await services.admissions.admit(new, caller.max_jobs)
        if previous is not None:
            return previous, "repeated"
        if request.deadline_s is not None:
            own_s = estimate(services.engine, entry.name, params, stages)
            backlog = await services.backlog.now(fresh=True)
            deadlines.check_deadline(backlog, own_s, PRIORITIES[request.priority], request.deadline_s)
        job, is_new = await shielded(_store(services, request, new, params, caller.max_jobs, fitted))
    except QueueFull as error:
        # The store knows how long jobs took; the engine knows better what those take that lie before this one.
        seconds = deadlines.retry_after(await services.backlog.now(), error.retry_after_s)
        raise type(error)(error.limit, seconds) from error
    if is_new:
        services.integrations.traces.remember(job.id)
    services.notifier.notify(QUEUE_TOPIC)
    return job, "new" if is_new else "repeated"


async def _reuse(
    services: Services, request: JobRequest, new: NewJob, params: Params
) -> tuple[tuple[Job, Origin] | None, NewJob, FittedPictures | None]:
    """The finished job that answers a request, if there is one; else the job to make, and its pictures.

    A full queue refuses nothing here: a job that is there takes no place. A seed that was drawn for this request is
    nobody's before.
    """
    outcomes = services.metrics.reuse
    if request.settings.get("seed") is None:
        outcomes.labels("no_seed").inc()
        return None, new, None
    if new.idempotency_key is not None:
        previous = await run_in_thread(services.reuse.repeated, new)
        if previous is not None:
            return (previous, "repeated"), new, None
    fitted = await _fit(services, new.owner, request, params)
    new = replace(new, identity=clip_identity(new, fitted.digests))
    found = await run_in_thread(services.reuse.find, new)
    if found is None:
        outcomes.labels("computed").inc()
        return None, new, fitted
    if found[1] == "reused":
        outcomes.labels("reused").inc()
    return found, new, None


def _resolve(services: Services, request: JobRequest) -> tuple[ModelEntry, Params, Stages]:
    entry = services.model(request.model, request.task)
    check_previews(entry, request.previews, services.previewable)
    seed = request.settings.get("seed")
    settings, frames = split_frames(entry, request.settings, request.stages)
    params = entry.resolve(settings, secrets.randbelow(_RANDOM_SEEDS) if seed is None else seed)
    stages = plan_stages(services.models, entry, params, request.stages, frames, services.integrations.upscalers)
    return entry, params, stages


def _new_job(
    caller: Caller,
    entry: ModelEntry,
    request: JobRequest,
    params: Params,
    stages: Stages,
    idempotency_key: str | None = None,
    body_hash: str = "",
) -> NewJob:
    return NewJob(
        id=f"job_{uuid4().hex}",
        task=request.task,
        model=entry.name,
        model_version=entry.version,
        seed=params.seed,
        params=params_to_json(params, request.output_format, stages),
        total_steps=total_steps(params, stages),
        output_format=request.output_format,
        priority=request.priority,
        metadata=request.metadata,
        body_hash=body_hash,
        idempotency_key=idempotency_key,
        owner=caller.owner,
        weight=caller.weight,
        deadline_s=request.deadline_s,
        webhook=request.webhook,
        previews=request.previews,
    )


async def _body_hash(request: JobRequest) -> str:
    """What tells a repeat from another request under the same Idempotency-Key."""
    large = any(isinstance(one, PictureFile) and one.size > SPOOLED_BYTES for one in request.pictures)
    digests = await run_in_thread(_digests, request.pictures) if large else _digests(request.pictures)
    return request_hash(request.task, request.body, digests)


def _digests(pictures: Sequence[PictureSource]) -> list[bytes]:
    return [_digest(picture) for picture in pictures]


def _digest(picture: PictureSource) -> bytes:
    """The SHA-256 of a picture's bytes, or of its URL."""
    match picture:
        case PictureFile():
            return picture.sha256()
        case UploadRef():
            return picture.digest
        case str():
            return hashlib.sha256(picture.encode()).digest()
        case _:
            return hashlib.sha256(picture).digest()


async def prepare(services: Services, caller: Caller, request: JobRequest) -> NewJob:
    """Check one of many requests and store its files; who cannot store the job's row afterwards removes them.

    Raises:
        InvalidRequest: a setting, a picture, or the webhook.
        UploadNotFound: the caller has no such upload.
        StorageFull: the disk is full; nothing is left of the files.
    """
    check_webhook(services.settings, request.webhook)
    entry, params, stages = _resolve(services, request)
    new = _new_job(caller, entry, request, params, stages)
    fitted = await _fit(services, caller.owner, request, params, store_as=new.id)
    return replace(new, identity=clip_identity(new, fitted.digests))


async def _fit(
    services: Services, owner: str, request: JobRequest, params: Params, *, store_as: str | None = None
) -> FittedPictures:
    """Fetch and decode the request's pictures, and fit them to the clip.

    Args:
        store_as: the job whose pictures they become at once, in the thread that fits them.

    Raises:
        UploadNotFound: the owner has no such upload.
        InvalidRequest: a picture is none, is too large, cannot be fetched or is refused; `param` names it.
        StorageFull: the disk is full; nothing is left of the files.
    """
    pictures: list[tuple[str, PictureFile | UploadRef | bytes]] = []
    with ExitStack() as fetched:
        for name, source in zip(TASKS[request.task].pictures, request.pictures, strict=True):
            if isinstance(source, str):
                with _named(name):
                    source = await services.integrations.fetcher.fetch(source)
                fetched.callback(source.file.close)
            pictures.append((name, source))
        if not pictures:
            return FittedPictures()
        async with services.decoding:
            return await run_in_thread(_decode, services, owner, pictures, params, store_as)


def _decode(
    services: Services,
    owner: str,
    pictures: list[tuple[str, PictureFile | UploadRef | bytes]],
    params: Params,
    store_as: str | None,
) -> FittedPictures:
    pngs, digests, verdicts = [], [], []
    for name, source in pictures:
        digests.append(_digest(source))
        with _named(name):
            if isinstance(source, UploadRef):
                source = services.uploads.read(owner, source.id, services.settings.image_limits)
            png, verdict = _clean(services, source, params)
        del source
        pngs.append(png)
        if verdict is not None:
            verdicts.append(verdict.as_json())
    fitted = FittedPictures(tuple(pngs), tuple(digests), tuple(verdicts))
    if store_as is not None:
        _put(services, store_as, fitted)
    return fitted


def _put(services: Services, job_id: str, fitted: FittedPictures) -> None:
    """Store a job's pictures, and what its manifest shall say of them; all or nothing."""
    try:
        for name, png in zip(input_names(len(fitted.pngs)), fitted.pngs, strict=True):
            services.artifacts.put(job_id, name, png)
        if fitted.verdicts:
            services.artifacts.put(job_id, NOTES_NAME, json.dumps({"safety": fitted.verdicts}).encode())
    except BaseException:
        services.artifacts.remove(job_id)
        raise


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Who decodes or fetches one picture knows it as `image`, whichever of the request's it is."""
    try:
        yield
    except UploadNotFound as error:
        error.param = name
        raise
    except InvalidRequest as error:
        error.param = None if error.param is None else error.param.replace("image", name, 1)
        raise


def _clean(services: Services, source: PictureFile | bytes, params: Params) -> tuple[bytes, Verdict | None]:
    """One picture fitted, as PNG, and the safety filter's verdict on it."""
    limits = services.settings.image_limits
    if isinstance(source, PictureFile):
        limits.check_bytes(source.size)
        source = source.read()
    picture = open_picture(source, limits=limits)
    verdict = None if services.integrations.safety is None else services.integrations.safety.check(picture)
    if verdict is not None and not verdict.allowed:
        raise PictureRefused(verdict)
    png = fitted_png(picture, params)
    large = picture.width * picture.height > _LARGE_PIXELS or len(source) > _LARGE_BYTES
    del picture, source
    if large:
        trim_freed_memory()
    return png, verdict


async def _store(
    services: Services,
    request: JobRequest,
    new: NewJob,
    params: Params,
    quota: int | None,
    fitted: FittedPictures | None,
) -> tuple[Job, bool]:
    """The files first, then the row: a job in the store always has its pictures."""
    if fitted is None:
        fitted = await _fit(services, new.owner, request, params, store_as=new.id)
        new = replace(new, identity=clip_identity(new, fitted.digests))
    elif fitted.pngs:
        await run_in_thread(_put, services, new.id, fitted)
    del fitted
    is_new = False
    try:
        job, is_new = await services.admissions.create(new, quota)
    finally:
        if not is_new:
            await run_in_thread(services.artifacts.remove, new.id)
    return job, is_new

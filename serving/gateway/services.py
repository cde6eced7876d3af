"""The services that the routes share: made when the app starts, closed when it stops.

`Integrations` are the optional ones, loaded only where the settings ask for them; tests bring their own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final, cast
from uuid import uuid4

from fastapi import Depends, Request

from model.catalog import ModelEntry
from model.errors import InvalidRequest, StillmotionError
from model.media.upscale import Upscalers, parse_files
from serving.background import run_in_thread
from serving.engine.protocol import Engine
from serving.gateway.deadlines import BacklogReader
from serving.gateway.errors import Problem
from serving.gateway.images import Fetcher, FetchLimits
from serving.gateway.safety import SafetyFilter, load
from serving.gateway.settings import Settings
from serving.interpolation.engine import ChainedEngine
from serving.jobs.artifacts import Artifacts
from serving.jobs.batches import BatchStore
from serving.jobs.database import Database
from serving.jobs.dispatcher import Dispatcher
from serving.jobs.group_commit import GroupCommit
from serving.jobs.leases import Leases
from serving.jobs.notifier import Notifier, RemoteChangePoller
from serving.jobs.retention import Janitor, Retention
from serving.jobs.reuse import ReuseStore
from serving.jobs.store import JobStore
from serving.jobs.uploads import UploadStore
from serving.jobs.webhooks import Deliverer, Outbox
from serving.keys import KeyRing, KeyStore, SharedBuckets
from serving.net import PublicOnly
from serving.observe.metrics import EngineCollector, InstrumentedEngine, Metrics, QueueCollector, WorkCollector
from serving.observe.traces import NoTraces, Traces, otlp_traces
from serving.provenance.video_manifest import FinishingEngine, Signer


@dataclass(frozen=True, slots=True)
class Integrations:
    """The optional services.

    Args:
        fetcher: gets pictures by URL, if the operator allows URLs.
        safety: judges pictures; None for no filter.
        signer: signs mp4s; None for no signatures.
        traces: where spans go.
        upscalers: what can make frames larger.
    """

    fetcher: Fetcher
    safety: SafetyFilter | None
    signer: Signer | None
    traces: Traces
    upscalers: Upscalers = field(default_factory=Upscalers)

    @classmethod
    def of(cls, settings: Settings) -> Integrations:
        """What the settings ask for.

        Raises:
            MissingExtra: an optional dependency is not installed.
            CheckpointError: an upscaler's file is no such network.
            InvalidRequest: key and certificate do not sign.
        """
        return cls(
            fetcher=Fetcher(settings.image_urls, FetchLimits(settings.max_image_bytes, settings.image_fetch_s)),
            safety=load(settings.safety, settings.safety_threshold),
            signer=_signer(settings),
            traces=otlp_traces() if settings.traces else NoTraces(),
            upscalers=_upscalers(settings),
        )


def _upscalers(settings: Settings) -> Upscalers:
    """Loaded now, so that a file that is no such network stops the start."""
    upscalers = Upscalers(parse_files(settings.upscalers))
    upscalers.check()
    return upscalers


def _signer(settings: Settings) -> Signer | None:
    if settings.c2pa_certificate is None or settings.c2pa_key is None:
        return None
    from serving.provenance.c2pa import C2paSigner

    return C2paSigner(settings.c2pa_certificate, settings.c2pa_key, settings.c2pa_algorithm, settings.c2pa_timestamps)


_log = logging.getLogger(__name__)
NOTES_NAME: Final = "notes.json"
"""A job's file of what its manifest shall say besides."""


@dataclass(slots=True)
class Warmup:
    """The engine's start, beside the answering of requests; `failure` says why it failed, if it did."""

    failure: str | None = None

    async def run(self, engine: Engine) -> None:
        """Start the engine."""
        try:
            await engine.start()
        except Exception as error:  # noqa: BLE001 - the boundary: whoever runs the app ends with the reason
            _log.error("the engine did not start: %s", error, exc_info=not isinstance(error, StillmotionError))
            self.failure = f"the engine did not start: {error}"


@dataclass(frozen=True, slots=True)
class Services:
    """What a running gateway consists of."""

    settings: Settings
    engine: Engine
    models: Sequence[ModelEntry]
    database: Database
    store: JobStore
    admissions: GroupCommit
    artifacts: Artifacts
    notifier: Notifier
    dispatcher: Dispatcher
    janitor: Janitor
    change_poller: RemoteChangePoller
    deliverer: Deliverer
    batches: BatchStore
    reuse: ReuseStore
    uploads: UploadStore
    keys: KeyRing
    metrics: Metrics
    backlog: BacklogReader
    integrations: Integrations
    decoding: asyncio.Semaphore
    previewable: frozenset[str]
    warmup: Warmup = field(default_factory=Warmup)

    def check_accepting(self) -> None:
        """Refuse new work while the service stops, or where its engine could not start.

        Raises:
            Problem: 503, with Retry-After.
        """
        if self.dispatcher.draining:
            message = "the service is about to stop and takes no new work; send it again in a while"
            raise Problem(503, "stopping", message, headers={"Retry-After": "10"})
        if self.warmup.failure is not None:
            raise Problem(503, "not_ready", self.warmup.failure, headers={"Retry-After": "30"})

    def model(self, name: str | None, task: str) -> ModelEntry:
        """The checkpoint of this name for the task; the first one if no name is given.

        Raises:
            InvalidRequest: none is served.
        """
        able = [entry for entry in self.models if entry.task.name == task]
        entry = next((entry for entry in able if name in (None, entry.name)), None)
        if entry is None:
            served = ", ".join(entry.name for entry in able) or "none"
            raise InvalidRequest(
                f"no model {name or ''!r} is served for {task}; served: {served}", code="model_not_found", param="model"
            )
        return entry


async def open_services(
    engine: Engine, models: Sequence[ModelEntry], settings: Settings, integrations: Integrations, metrics: Metrics
) -> Services:
    """Open the database (bringing its tables up to date) and the artifacts, and make the dispatcher.

    The engine is given three wrappers: one runs chained requests through it, one finishes its results, one counts and
    traces what it does.
    """
    artifacts = await run_in_thread(Artifacts.open, settings.artifacts)
    database = await run_in_thread(Database, settings.database_url)
    engine = ChainedEngine(engine, artifacts, models, integrations.upscalers)
    engine = FinishingEngine(engine, partial(_notes, artifacts), integrations.signer)
    engine = InstrumentedEngine(engine, metrics, integrations.traces)
    backlog = BacklogReader(database, engine)
    work = WorkCollector(backlog.waiting, database)
    metrics.read_at_scrape(QueueCollector(database), work, EngineCollector(engine))
    store, notifier = JobStore(database, terms=settings.terms), Notifier()
    leases = Leases(database, _server_name(), terms=settings.terms)
    dispatcher = Dispatcher(engine, leases, artifacts, notifier, settings.progress_interval_s)
    uploads = UploadStore(database, artifacts, terms=settings.upload_terms)
    janitor = Janitor(Retention(database, terms=settings.terms), store, artifacts, notifier, uploads=uploads)
    return Services(
        settings=settings,
        engine=engine,
        models=models,
        database=database,
        store=store,
        admissions=GroupCommit(store, settings.queue_limit),
        artifacts=artifacts,
        notifier=notifier,
        dispatcher=dispatcher,
        janitor=janitor,
        change_poller=RemoteChangePoller(store, notifier),
        deliverer=Deliverer(Outbox(database), PublicOnly(settings.webhook_policy), _webhook_secret(settings)),
        batches=BatchStore(database, terms=settings.terms),
        reuse=ReuseStore(database, artifacts, terms=settings.terms),
        uploads=uploads,
        keys=KeyRing(KeyStore(database), shared=SharedBuckets(database) if database.shared else None),
        metrics=metrics,
        backlog=backlog,
        integrations=integrations,
        decoding=asyncio.Semaphore(settings.decoders),
        previewable=frozenset(entry.name for entry in models if entry.previews),
    )


def _notes(artifacts: Artifacts, job_id: str) -> dict[str, Any]:
    """What a job's manifest shall say besides, as it was written down at its submission."""
    try:
        return cast(dict[str, Any], json.loads(artifacts.read(job_id, NOTES_NAME)))
    except FileNotFoundError:
        return {}


async def close_services(services: Services, warming: asyncio.Task[None]) -> None:
    """Stop the engine, give its unfinished jobs back to the queue, then close the database."""
    warming.cancel()
    await asyncio.gather(warming, return_exceptions=True)
    await services.janitor.stop()
    await services.change_poller.stop()
    services.dispatcher.refuse_work()
    await services.engine.stop()
    await services.dispatcher.stop()
    await services.deliverer.stop()
    await run_in_thread(services.database.close)


def _webhook_secret(settings: Settings) -> str | None:
    return None if settings.webhook_secret is None else settings.webhook_secret.get_secret_value()


def _server_name() -> str:
    """Another at every start, readable in the database."""
    return f"{socket.gethostname()[:40]}:{os.getpid()}:{uuid4().hex}"


async def _services(request: Request) -> Services:  # async, or FastAPI would ask a thread for it
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]
"""A route's parameter: the running gateway's services."""

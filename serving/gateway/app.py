"""The application: routes, error answers and what runs beside them, put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import Depends, FastAPI

from model.catalog import ModelEntry
from serving.engine.protocol import Engine
from serving.gateway import errors, openapi
from serving.gateway.auth import authenticated
from serving.gateway.middleware import AccessLog, BodyLimit, HeadAsGet, RequestId
from serving.gateway.routes import batches, content, events, extensions, generate, jobs, openai, system, uploads
from serving.gateway.services import Integrations, close_services, open_services
from serving.gateway.settings import Settings
from serving.observe.metrics import Metrics

_ABOUT = """A still becomes a short video. `POST /generate/image-to-video` answers with a job at once; follow it by
its events, then fetch its content. Every error has the shape of `ErrorResponse`."""


def create_app(
    engine: Engine, models: Sequence[ModelEntry], settings: Settings, *, integrations: Integrations | None = None
) -> FastAPI:
    """The gateway in front of `engine`, which it starts and stops itself.

    Jobs are accepted as soon as the app runs; they wait until the engine is warm (`/health/ready`).

    Args:
        engine: what makes the videos.
        models: the checkpoints `engine` serves, read anew at each use; the first is the default.
        settings: limits and places.
        integrations: the optional services; those the settings ask for if left out.

    Raises:
        MissingExtra: a setting asks for something that is not installed.
        InvalidRequest: the files to sign with do not fit.
    """
    beyond = integrations or Integrations.of(settings)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = await open_services(engine, models, settings, beyond, metrics)
        app.state.services = services
        warming = asyncio.create_task(services.warmup.run(engine), name="engine start")
        try:
            await services.dispatcher.start()
            await services.janitor.start()
            await services.change_poller.start()
            await services.deliverer.start()
            yield
        finally:
            await close_services(services, warming)

    app = FastAPI(
        title="Stillmotion",
        description=_ABOUT,
        version=_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        BodyLimit,
        limit=settings.max_body_bytes,
        form_limit=settings.max_form_bytes,
        total=settings.max_uploads_bytes,
        larger={"/batches": settings.max_batch_bytes, "/uploads": settings.max_upload_bytes},
        streamed=frozenset({"/uploads"}),
    )
    app.add_middleware(RequestId)
    app.add_middleware(AccessLog, metrics=metrics, traces=beyond.traces)  # outermost, so that it counts every 500
    app.state.metrics = metrics
    for part in (generate, batches, uploads, jobs, events, content, system, extensions, openai):
        app.include_router(part.router, dependencies=[Depends(authenticated)], responses=openapi.error_responses(401))
    app.include_router(system.public)
    openapi.install(app)
    return app


def _version() -> str:
    try:
        return version("stillmotion-server")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0.0.0"

"""Health, the list of models, Prometheus metrics, and the pages for people: the playground at / and API docs at /docs.

Every file the pages load comes from this server, so that they work without network. Two routers: `public` needs no key,
`router` does (the application attaches authentication to a whole router).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import FileResponse, HTMLResponse, Response
from stillmotion.types import Health, KeyInfo, KeyList, LoraInfo, ModelInfo, ModelList

from serving.background import run_in_thread
from serving.gateway.auth import operator_only
from serving.gateway.errors import Problem
from serving.gateway.openapi import error_responses
from serving.gateway.services import ServicesDep
from serving.keys import Caller, KeyStore

_health = APIRouter(prefix="/health", tags=["health"])
_RETRY_AFTER_S = "2"
_WARMING = "the engine is not warm (yet)"


@_health.get("", responses=error_responses())
async def health(services: ServicesDep) -> Health:
    """Whether the engine is warm, as a 200 in either case, for pages and people; probes read /health/ready."""
    try:
        services.check_accepting()
    except Problem as problem:
        return Health(status="not_ready", detail=problem.message)
    if not services.engine.ready:
        return Health(status="not_ready", detail=_WARMING)
    return Health(status="ready")


@_health.get("/live", responses=error_responses())
async def live() -> Health:
    """The process answers."""
    return Health(status="live")


@_health.get("/ready", responses=error_responses(503))
async def ready(services: ServicesDep) -> Health:
    """The engine is warm. 503 with Retry-After until it is, and while the service stops."""
    services.check_accepting()
    if not services.engine.ready:
        raise Problem(503, "not_ready", _WARMING, headers={"Retry-After": _RETRY_AFTER_S})
    return Health(status="ready")


_metrics = APIRouter(tags=["operation"])
_TEXT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@_metrics.get("/metrics", response_class=Response, responses={**_TEXT, **error_responses(401, 403)})
async def read_metrics(request: Request, _: Annotated[Caller, Depends(operator_only)]) -> Response:
    """Everything that is counted, of all keys. Where there are keys, only an operator's may read it."""
    text = await run_in_thread(generate_latest, request.app.state.metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


@_metrics.get("/keys", responses=error_responses(401, 403))
async def list_keys(services: ServicesDep, _: Annotated[Caller, Depends(operator_only)]) -> KeyList:
    """Every API key, without its secret. Where there are keys, only an operator's may read it."""
    stored = await run_in_thread(KeyStore(services.database).all)
    return KeyList(
        data=[
            KeyInfo(
                id=key.id,
                name=key.name,
                weight=key.weight,
                per_minute=key.per_minute,
                max_jobs=key.max_jobs,
                operator=key.operator,
                created_at=key.created_at,
                revoked_at=key.revoked_at,
            )
            for key in (one.key for one in stored)
        ]
    )


_models = APIRouter(tags=["models"])


@_models.get("/models", responses=error_responses())
async def list_models(services: ServicesDep) -> ModelList:
    """Every checkpoint that can be asked for; the first is the default of its task."""
    return ModelList(
        data=[
            ModelInfo(
                id=entry.name,
                task=entry.task.name,
                version=entry.version,
                num_frames=list(entry.num_frames),
                width=entry.width,
                height=entry.height,
                defaults=entry.defaults,
                previews=entry.name in services.previewable,
                loras=[LoraInfo(id=one.name, version=one.version, rank=one.rank, base=one.base) for one in entry.loras],
            )
            for entry in services.models
        ]
    )


_pages = APIRouter(include_in_schema=False)
_WEB: Final = Path(__file__).parents[2] / "web"
_PAGE_FILES: Final = frozenset(file.name for file in _WEB.iterdir() if file.suffix in {".js", ".css", ".svg", ".jpg"})
_DOCS_FILES: Final = frozenset({"swagger-ui-bundle.js", "swagger-ui.css"})
_POLICY: Final = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; frame-ancestors 'none'"


@_pages.get("/")
async def playground() -> FileResponse:
    """The playground."""
    return FileResponse(_WEB / "index.html", headers={"Content-Security-Policy": _POLICY})


@_pages.get("/web/{name}")
async def page_file(name: str) -> FileResponse:
    """A file of the playground."""
    if name not in _PAGE_FILES:
        raise Problem(404, "route_not_found", f"there is nothing at /web/{name}")
    return FileResponse(_WEB / name)


@_pages.get("/docs")
async def docs() -> HTMLResponse:
    """The OpenAPI document, to read and to try."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Stillmotion API",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/web/icon.svg",
    )


@_pages.get("/docs/{name}")
async def docs_file(name: str) -> FileResponse:
    """A file of the interactive document, from the fastapi-offline distribution."""
    if name not in _DOCS_FILES:
        raise Problem(404, "route_not_found", f"there is nothing at /docs/{name}")
    return FileResponse(Path(str(files("fastapi_offline"))) / "static" / name)


public = APIRouter()
"""Answers without a key: health and the pages."""
public.include_router(_health)
public.include_router(_pages)

router = APIRouter()
"""What an operator or a caller with a key reads: models and metrics."""
router.include_router(_models)
router.include_router(_metrics)

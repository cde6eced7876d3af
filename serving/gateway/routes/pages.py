"""The pages for people: the playground at / and the interactive API document at /docs.

Every file they load comes from this server: both work on a machine without network.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse

from serving.gateway.errors import Problem

router = APIRouter(include_in_schema=False)
_WEB: Final = Path(__file__).parents[2] / "web"
_PAGE_FILES: Final = frozenset({"app.js", "style.css", "icon.svg"})
_DOCS_FILES: Final = frozenset({"swagger-ui-bundle.js", "swagger-ui.css"})
_POLICY: Final = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; frame-ancestors 'none'"


@router.get("/")
async def playground() -> FileResponse:
    """The playground."""
    return FileResponse(_WEB / "index.html", headers={"Content-Security-Policy": _POLICY})


@router.get("/web/{name}")
async def page_file(name: str) -> FileResponse:
    """A file of the playground."""
    if name not in _PAGE_FILES:
        raise Problem(404, "route_not_found", f"there is nothing at /web/{name}")
    return FileResponse(_WEB / name)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The OpenAPI document, to read and to try."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Stillmotion API",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/web/icon.svg",
    )


@router.get("/docs/{name}")
async def docs_file(name: str) -> FileResponse:
    """A file of the interactive document, from the fastapi-offline distribution."""
    if name not in _DOCS_FILES:
        raise Problem(404, "route_not_found", f"there is nothing at /docs/{name}")
    return FileResponse(Path(str(files("fastapi_offline"))) / "static" / name)

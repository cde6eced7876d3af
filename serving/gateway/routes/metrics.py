"""Prometheus metrics."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from serving.gateway.auth import operating
from serving.gateway.documented import errors
from serving.jobs.threads import in_thread
from serving.keys.ring import Caller

router = APIRouter(tags=["operation"])
_TEXT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get("/metrics", response_class=Response, responses={**_TEXT, **errors(401, 403)})
async def read_metrics(request: Request, _: Annotated[Caller, Depends(operating)]) -> Response:
    """Everything that is counted, of all keys. Where there are keys, only an operator's may read it."""
    text = await in_thread(generate_latest, request.app.state.metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

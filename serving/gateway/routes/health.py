"""Whether the process lives, and whether a request sent now would be served without loading first."""

from __future__ import annotations

from fastapi import APIRouter
from stillmotion.types import Health

from serving.gateway.documented import errors
from serving.gateway.errors import Problem
from serving.gateway.services import Parts

router = APIRouter(prefix="/health", tags=["health"])
_RETRY_AFTER_S = "2"


@router.get("/live", responses=errors())
async def live() -> Health:
    """The process answers."""
    return Health(status="live")


@router.get("/ready", responses=errors(503))
async def ready(parts: Parts) -> Health:
    """The engine is warm. 503 with Retry-After until it is, and while the service stops."""
    parts.check_accepting()
    if not parts.engine.ready:
        raise Problem(503, "not_ready", "the engine is not warm (yet)", headers={"Retry-After": _RETRY_AFTER_S})
    return Health(status="ready")

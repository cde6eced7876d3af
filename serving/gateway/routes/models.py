"""Which checkpoints are served."""

from __future__ import annotations

from fastapi import APIRouter
from stillmotion.types import LoraInfo, ModelInfo, ModelList

from serving.gateway.documented import errors
from serving.gateway.services import Parts

router = APIRouter(tags=["models"])


@router.get("/models", responses=errors())
async def list_models(parts: Parts) -> ModelList:
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
                previews=entry.name in parts.previewable,
                loras=[LoraInfo(id=one.name, version=one.version, rank=one.rank, base=one.base) for one in entry.loras],
            )
            for entry in parts.models
        ]
    )

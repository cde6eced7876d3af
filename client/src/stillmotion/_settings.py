"""The keyword arguments of a generation: `ImageToVideoRequest`'s fields, all optional.

A test holds the two equal. They are not checked here: the service knows the checkpoint, and names the field at fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypedDict

from stillmotion.types import OutputFormat, Priority, ResizeMode, Solver


class ImageToVideoSettings(TypedDict, total=False):
    """Settings of one generation; what is left out takes the checkpoint's own default."""

    model: str | None
    num_frames: int | None
    width: int | None
    height: int | None
    fps: int | None
    motion_bucket_id: int | None
    noise_aug_strength: float | None
    min_guidance_scale: float | None
    max_guidance_scale: float | None
    num_inference_steps: int | None
    solver: Solver | None
    decode_chunk_size: int | None
    seed: int | None
    resize_mode: ResizeMode | None
    output_format: OutputFormat
    priority: Priority
    metadata: dict[str, str]


def form_fields(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as multipart fields: numbers in decimal, dictionaries as JSON, None left out."""
    return {
        name: json.dumps(value) if isinstance(value, dict) else str(value)
        for name, value in settings.items()
        if value is not None
    }

"""The keyword arguments of a generation of each task: the fields of its wire type, all optional.

A test holds them equal. They are not checked here: the service knows the checkpoint, and names the field at fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Required, TypedDict

from stillmotion.types import OutputFormat, Priority, ResizeMode, Schedule, Solver


class WebhookSettings(TypedDict, total=False):
    """Where the news of the job's end is sent; `secret` (whsec_...) signs it."""

    url: Required[str]
    secret: str | None


class CommonSettings(TypedDict, total=False):
    """Settings that every task has; what is left out takes the checkpoint's own default."""

    model: str | None
    num_frames: int | None
    width: int | None
    height: int | None
    fps: int | None
    motion_bucket_id: int | None
    max_guidance_scale: float | None
    num_inference_steps: int | None
    solver: Solver | None
    schedule: Schedule | None
    decode_chunk_size: int | None
    seed: int | None
    output_format: OutputFormat
    priority: Priority
    deadline_s: float | None
    metadata: dict[str, str]
    webhook: WebhookSettings | None
    previews: bool
    reuse: bool


class TextToVideoSettings(CommonSettings, total=False):
    """Settings of text-to-video, besides the prompt."""

    lora: str | None
    lora_scale: float | None
    interpolate: bool | str
    upscale: int | None
    upscaler: str | None
    stages: list[dict[str, Any]]


class FrameInterpolationSettings(CommonSettings, total=False):
    """Settings of frame interpolation, besides the two pictures."""

    noise_aug_strength: float | None
    resize_mode: ResizeMode | None


class ImageToVideoSettings(FrameInterpolationSettings, total=False):
    """Settings of image-to-video, besides the picture."""

    min_guidance_scale: float | None
    lora: str | None
    lora_scale: float | None
    interpolate: bool | str
    upscale: int | None
    upscaler: str | None
    stages: list[dict[str, Any]]


class MultiViewSettings(FrameInterpolationSettings, total=False):
    """Settings of multi-view, besides the picture."""

    min_guidance_scale: float | None
    elevation: float | None


def form_fields(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as multipart fields: numbers in decimal, dictionaries and lists as JSON, None left out."""
    return {
        name: json.dumps(value) if isinstance(value, (dict, list)) else str(value)
        for name, value in settings.items()
        if value is not None
    }


def json_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a JSON body, None left out."""
    return {name: value for name, value in settings.items() if value is not None}

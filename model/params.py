"""What one generation is asked to be: complete, resolved, and the same type from the wire to the sampler.

Imports no torch: the gateway builds these too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from model.errors import InvalidRequest
from model.shapes import VideoShape

SolverName = Literal["euler", "heun"]
ScheduleName = Literal["karras", "align-your-steps"]
ResizeMode = Literal["crop", "fit", "stretch"]
OutputFormat = Literal["mp4", "webm", "gif"]

SOLVERS: tuple[SolverName, ...] = ("euler", "heun")
MAX_STEPS = 200
MAX_SEED = 2**63 - 1

_LIMITS: dict[str, tuple[float, float]] = {
    "fps": (1, 60),
    "motion_bucket_id": (1, 255),
    "noise_aug_strength": (0.0, 10.0),
    "min_guidance_scale": (0.0, 30.0),
    "max_guidance_scale": (0.0, 30.0),
    "num_inference_steps": (1, MAX_STEPS),
    "seed": (0, MAX_SEED),
    "decode_chunk_size": (1, 14),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageToVideoParams:
    """Every setting of one image-to-video generation; none is optional, none is ignored.

    `fps` is what the clip is conditioned on and played at. `motion_bucket_id` says how much moves (1-255; the map from
    measured flow is documented in docs/motion.md). `noise_aug_strength` is the standard deviation of the noise put
    on the [-1, 1] conditioning picture. The guidance scale runs linearly over the frames from min to max.

    Raises:
        InvalidRequest: a value is out of its range or not finite; `param` names it.
    """

    num_frames: int
    height: int
    width: int
    seed: int
    fps: int
    motion_bucket_id: int
    noise_aug_strength: float
    min_guidance_scale: float
    max_guidance_scale: float
    num_inference_steps: int
    solver: SolverName
    schedule: ScheduleName
    decode_chunk_size: int
    resize_mode: ResizeMode

    def __post_init__(self) -> None:
        _ = self.shape
        for field in fields(self):
            if field.name in _LIMITS:
                check_range(field.name, getattr(self, field.name))
        if self.solver not in SOLVERS:
            raise InvalidRequest(f"solver must be one of {', '.join(SOLVERS)}", param="solver")

    @property
    def shape(self) -> VideoShape:
        """The clip's size in pixels."""
        return VideoShape(self.num_frames, self.height, self.width)


def check_range(name: str, value: int | float) -> None:
    """Raise InvalidRequest unless the field's value is finite and within its limits."""
    low, high = _LIMITS[name]
    if not math.isfinite(value) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be from {low:g} to {high:g}, not {value}", param=name, code="out_of_range")

"""The settings of one generation: complete, resolved, and the same type from the wire to the sampler. One type a task.

Imports no torch: the gateway builds these too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from model.errors import InvalidRequest
from model.lora.catalog import LoraUse, lora_use
from model.shapes import VideoShape

SolverName = Literal["euler", "heun", "dpmpp-2m", "lcm"]
ScheduleName = Literal["karras", "align-your-steps", "lcm"]
ResizeMode = Literal["crop", "fit", "stretch"]
OutputFormat = Literal["mp4", "webm", "gif"]

SOLVERS: tuple[SolverName, ...] = ("euler", "heun", "dpmpp-2m", "lcm")
SCHEDULES: tuple[ScheduleName, ...] = ("karras", "align-your-steps", "lcm")
MAX_STEPS = 200
LCM_LEVELS = 40
"""Karras levels that schedule `lcm` chooses from: those that AnimateLCM-SVD was distilled on."""
MAX_SEED = 2**63 - 1
MAX_PROMPT = 2000
"""Characters."""

_LIMITS: dict[str, tuple[float, float]] = {
    "fps": (1, 60),
    "motion_bucket_id": (1, 255),
    "noise_aug_strength": (0.0, 10.0),
    "min_guidance_scale": (0.0, 30.0),
    "max_guidance_scale": (0.0, 30.0),
    "num_inference_steps": (1, MAX_STEPS),
    "seed": (0, MAX_SEED),
    "decode_chunk_size": (1, 128),
    "elevation": (-90.0, 90.0),
    "lora_scale": (-2.0, 2.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Every setting of one generation; a task's own type adds its own. None is optional but a LoRA, none is ignored.

    `fps` is what the clip is conditioned on and played at. `motion_bucket_id` says how much moves (1-255; the map from
    measured flow is documented in docs/motion.md). `max_guidance_scale` is the scale of every frame where the task's
    guidance is constant, else the largest along the frames.

    Raises:
        InvalidRequest: a value is out of its range or not finite; `param` names it.
    """

    num_frames: int
    height: int
    width: int
    seed: int
    fps: int
    motion_bucket_id: int
    max_guidance_scale: float
    num_inference_steps: int
    solver: SolverName
    schedule: ScheduleName
    decode_chunk_size: int

    def __post_init__(self) -> None:
        _ = self.shape
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _LIMITS and value is not None:
                check_range(field.name, value)
            elif field.name == "prompt":
                check_prompt(value)
        _ = self.adapter
        if self.solver not in SOLVERS:
            raise InvalidRequest(f"solver must be one of {', '.join(SOLVERS)}", param="solver")
        if self.schedule not in SCHEDULES:
            raise InvalidRequest(f"schedule must be one of {', '.join(SCHEDULES)}", param="schedule")
        if self.schedule == "lcm":
            check_lcm_steps(self.num_inference_steps)

    @property
    def shape(self) -> VideoShape:
        """The clip's size in pixels."""
        return VideoShape(self.num_frames, self.height, self.width)

    @property
    def guidance_range(self) -> tuple[float, float]:
        """The two ends of the guidance scale, as `model.sampling.row.guidance_scale` takes them."""
        return (self.max_guidance_scale, self.max_guidance_scale)

    @property
    def adapter(self) -> LoraUse | None:
        """The LoRA to apply; only some tasks have any."""
        return None

    @property
    def picture_fit(self) -> tuple[int, int, ResizeMode]:
        """Height, width and mode for `model.media.image.fit_picture`; only some tasks have pictures to fit."""
        return (self.height, self.width, "crop")

    def timing_key(self) -> Params:
        """The settings without those that cost no time: equal for two generations that take equally long."""
        return replace(self, seed=0, fps=1, motion_bucket_id=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToVideoParams(Params):
    """Text-to-video: `prompt` says what is to be seen, in words; `lora` and `lora_scale` as in ImageToVideoParams."""

    prompt: str
    lora: str | None = None
    lora_scale: float | None = None

    @property
    def adapter(self) -> LoraUse | None:
        """The LoRA to apply."""
        return None if (self.lora, self.lora_scale) == (None, None) else lora_use(self.lora, self.lora_scale)

    def timing_key(self) -> Params:
        """The settings without those that cost no time; a prompt is padded, so its length costs none."""
        return replace(self, seed=0, fps=1, motion_bucket_id=1, prompt="-")


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureParams(Params):
    """Settings of tasks that begin from pictures.

    `noise_aug_strength` is the standard deviation of the noise put on the conditioning picture (on its [-1, 1] pixels,
    or for frame interpolation on its latents). `resize_mode` says how a picture meets the clip's aspect.
    """

    noise_aug_strength: float
    resize_mode: ResizeMode

    @property
    def picture_fit(self) -> tuple[int, int, ResizeMode]:
        """Height, width and mode for `model.media.image.fit_picture`."""
        return (self.height, self.width, self.resize_mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageToVideoParams(PictureParams):
    """Image-to-video: the guidance scale runs linearly over the frames from min to max.

    `lora` is NAME@VERSION of an adapter (model.lora), `lora_scale` its strength: 1 as trained, 0 none of it, below 0
    the opposite. Both or neither.
    """

    min_guidance_scale: float
    lora: str | None = None
    lora_scale: float | None = None

    @property
    def guidance_range(self) -> tuple[float, float]:
        """The scale at the first frame and at the last."""
        return (self.min_guidance_scale, self.max_guidance_scale)

    @property
    def adapter(self) -> LoraUse | None:
        """The LoRA to apply."""
        return None if (self.lora, self.lora_scale) == (None, None) else lora_use(self.lora, self.lora_scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameInterpolationParams(PictureParams):
    """Frame interpolation: `num_frames` counts both pictures and the frames between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiViewParams(PictureParams):
    """Multi-view: an orbit around the pictured object, seen from `elevation` degrees above its equator.

    The guidance scale is min at both ends of the orbit and max half way round.
    """

    min_guidance_scale: float
    elevation: float

    @property
    def guidance_range(self) -> tuple[float, float]:
        """The scale at both ends of the orbit, and half way round."""
        return (self.min_guidance_scale, self.max_guidance_scale)


def check_prompt(prompt: str) -> None:
    """Raise InvalidRequest unless the prompt says something, in at most MAX_PROMPT characters."""
    if not prompt.strip():
        raise InvalidRequest("prompt must say what is to be seen", param="prompt", code="empty_prompt")
    if len(prompt) > MAX_PROMPT:
        raise InvalidRequest(
            f"prompt may have at most {MAX_PROMPT} characters, not {len(prompt)}", param="prompt", code="out_of_range"
        )


def check_lcm_steps(steps: int) -> None:
    """Refuse more steps than schedule `lcm` has levels. Raises InvalidRequest."""
    if steps > LCM_LEVELS:
        raise InvalidRequest(
            f"schedule lcm has {LCM_LEVELS} levels, so at most as many steps, not {steps}", param="num_inference_steps"
        )


def check_range(name: str, value: int | float) -> None:
    """Raise InvalidRequest unless the field's value is finite and within its limits."""
    low, high = _LIMITS[name]
    if not math.isfinite(value) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be from {low:g} to {high:g}, not {value}", param=name, code="out_of_range")

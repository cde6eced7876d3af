"""The task table: one TaskSpec a task, the single source for what a task is. Imports no torch.

From a spec follow the UNet's input channels, the settings that a request may have, the encoders that read it and the
function that builds its conditioning, the guidance over the frames, what training drops out for guidance, the warm-up
request, and the export profile. A fifth task is one entry here, with its settings' type (model.params) and its
conditioning builder. Channel counts are in units of the latent channels C, so that a spec serves published checkpoints
(C = 4) and ours (C = 16).

Source: Blattmann et al. 2023 (arXiv 2311.15127), section 4 and appendix D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, Literal, cast

from model.errors import InvalidRequest
from model.params import FrameInterpolationParams, ImageToVideoParams, MultiViewParams, Params, TextToVideoParams

VectorField = Literal["fps", "motion_bucket_id", "noise_aug_strength", "elevation"]
GuidanceShape = Literal["linear", "constant", "triangular"]
ContextSource = Literal["image", "image-pair", "text"]
Augmentation = Literal["pixels", "latents", "none"]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task, declared.

    Args:
        name: as in the API's path and in a checkpoint's `stillmotion.json`.
        params: the type of its settings; their names are the legal request fields.
        pictures: the pictures a request brings, in the order in which they travel.
        context: which encoders read a request for the cross-attention context (model.encoders).
        context_tokens: the context's length.
        concat_latents: latents concatenated to the noisy one, in units of C.
        concat_masks: further input channels, one each (a binary mask).
        vector: the scalars embedded (sinusoidal, 256 each) and added to the time embedding, in this order.
        augmentation: where the conditioning pictures get their noise.
        conditioning: MODULE:FUNCTION of its ConditioningBuilder (model.conditioning), imported on first use.
        frames: the frame counts published for the task.
        guidance: how the guidance scale runs over the frames.
        guidance_range: default scale at the first and last frame.
        condition_dropout: share of training clips whose condition is zeroed, for classifier-free guidance.
        sample_request: what a warm-up request must set beyond a checkpoint's defaults.
        diffusers_pipeline: diffusers' pipeline class for it; None where there is none.
        moving_scene: whether its frames are moments of a moving scene: frames can be made between them, and FVD means
            something.
        restores_ends: whether its pictures are the first and the last frame of the result, and are put back there
            (model.media.end_frames).
        dataset: of `stillmotion data NAME`, what holds its held-out clips.
    """

    name: str
    params: type[Params]
    pictures: tuple[str, ...]
    context: ContextSource
    context_tokens: int
    concat_latents: int
    concat_masks: int
    vector: tuple[VectorField, ...]
    augmentation: Augmentation
    conditioning: str
    frames: tuple[int, ...]
    guidance: GuidanceShape
    guidance_range: tuple[float, float]
    condition_dropout: float
    sample_request: Mapping[str, Any] = field(default_factory=dict, hash=False)
    diffusers_pipeline: str | None = None
    moving_scene: bool = False
    restores_ends: bool = False
    dataset: str = "starter"

    @property
    def settings(self) -> frozenset[str]:
        """The names of its settings."""
        return frozenset(setting.name for setting in fields(self.params))

    def conditioning_builder(self) -> Callable[..., Any]:
        """Its ConditioningBuilder; imports torch."""
        module, function = self.conditioning.split(":")
        return cast(Callable[..., Any], getattr(import_module(module), function))

    def unet_in_channels(self, latent_channels: int) -> int:
        """Input channels of the UNet, for C latent channels: C, 2C or 2C + 1."""
        return latent_channels * (1 + self.concat_latents) + self.concat_masks

    def concat_channels(self, latent_channels: int) -> int:
        """Channels concatenated to the noisy latents: 0, C or C + 1."""
        return self.unet_in_channels(latent_channels) - latent_channels

    @property
    def vector_size(self) -> int:
        """Width of the vector conditioning: 256 sinusoidal numbers a scalar."""
        return 256 * len(self.vector)


IMAGE_TO_VIDEO = TaskSpec(
    name="image-to-video",
    params=ImageToVideoParams,
    pictures=("image",),
    context="image",
    context_tokens=1,
    concat_latents=1,
    concat_masks=0,
    vector=("fps", "motion_bucket_id", "noise_aug_strength"),
    augmentation="pixels",
    conditioning="model.conditioning:image_conditioning",
    frames=(14, 25),
    guidance="linear",
    guidance_range=(1.0, 3.0),
    condition_dropout=0.1,
    diffusers_pipeline="StableVideoDiffusionPipeline",
    moving_scene=True,
)
"""A still becomes the first frame of a clip (paper, section 4.2)."""


TEXT_TO_VIDEO = TaskSpec(
    name="text-to-video",
    params=TextToVideoParams,
    pictures=(),
    context="text",
    context_tokens=77,
    concat_latents=0,
    concat_masks=0,
    vector=("fps", "motion_bucket_id"),
    augmentation="none",
    conditioning="model.conditioning:text_conditioning",
    frames=(14, 25),
    guidance="constant",
    guidance_range=(7.5, 7.5),
    condition_dropout=0.15,
    sample_request={"prompt": "a harbour at dusk"},
    moving_scene=True,
)
"""A sentence becomes a clip (paper, section 4.1). The scale of its guidance is not published."""


FRAME_INTERPOLATION = TaskSpec(
    name="frame-interpolation",
    params=FrameInterpolationParams,
    pictures=("image", "last_image"),
    context="image-pair",
    context_tokens=2,
    concat_latents=1,
    concat_masks=1,
    vector=("fps", "motion_bucket_id", "noise_aug_strength"),
    augmentation="latents",
    conditioning="model.conditioning:image_pair_conditioning",
    frames=(5,),
    guidance="constant",
    guidance_range=(2.0, 2.0),
    condition_dropout=0.1,
    restores_ends=True,
)
"""Two stills become a clip that leads from one to the other (paper, section 4.3 and appendix D).

The scale of its guidance and the share of dropped conditions are not published.
"""


MULTI_VIEW = TaskSpec(
    name="multi-view",
    params=MultiViewParams,
    pictures=("image",),
    context="image",
    context_tokens=1,
    concat_latents=1,
    concat_masks=0,
    vector=("fps", "motion_bucket_id", "noise_aug_strength", "elevation"),
    augmentation="pixels",
    conditioning="model.conditioning:image_conditioning",
    frames=(21,),
    guidance="triangular",
    guidance_range=(1.0, 2.5),
    condition_dropout=0.1,
    sample_request={"elevation": 0.0},
    dataset="multi-view",
)
"""A still of an object becomes an orbit around it (paper, section 4.5; the guidance is SV3D's)."""


TASKS: dict[str, TaskSpec] = {
    spec.name: spec for spec in (IMAGE_TO_VIDEO, TEXT_TO_VIDEO, FRAME_INTERPOLATION, MULTI_VIEW)
}


def task(name: str) -> TaskSpec:
    """The spec of the task called `name`.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in TASKS:
        raise InvalidRequest(f"no task is called {name!r}; there are: {', '.join(sorted(TASKS))}", param="task")
    return TASKS[name]


def task_of(params: Params) -> TaskSpec:
    """The task that these are the settings of."""
    return next(spec for spec in TASKS.values() if spec.params is type(params))

"""TaskSpec: the single source for what a task is.

From one spec follow the UNet's input channels, what the sampler is fed, which request fields are legal, what training
drops out for guidance, and the export profile. Channel counts are in units of the latent channels C, so that a spec
serves published checkpoints (C = 4) and ours (C = 16).

Source: Blattmann et al. 2023 (arXiv 2311.15127), section 4 and appendix D.

Frame interpolation: two stills become a clip that leads from one to the other (paper, section 4.3 and appendix D).

The scale of its guidance and the share of dropped conditions are not published.

Image-to-video: a still becomes the first frame of a clip (paper, section 4.2).

Multi-view: a still of an object becomes an orbit around it (paper, section 4.5; the guidance is SV3D's).

Text-to-video: a sentence becomes a clip (paper, section 4.1). The scale of its guidance is not published.

The task table: adding a task is one new file and one line here. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.errors import InvalidRequest

VectorField = Literal["fps", "motion_bucket_id", "noise_aug_strength", "elevation"]
GuidanceShape = Literal["linear", "constant", "triangular"]
ContextSource = Literal["image", "image-pair", "text"]
Augmentation = Literal["pixels", "latents", "none"]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task, declared.

    Args:
        name: as in the API's path and in a checkpoint's `stillmotion.json`.
        concat_latents: latents concatenated to the noisy one, in units of C.
        concat_masks: further input channels, one each (a binary mask).
        context: where the cross-attention context comes from.
        context_tokens: its length.
        vector: the scalars embedded (sinusoidal, 256 each) and added to the time embedding, in this order.
        augmentation: where the conditioning pictures get their noise.
        frames: the frame counts published for the task.
        guidance: how the guidance scale runs over the frames.
        guidance_range: default scale at the first and last frame.
        condition_dropout: share of training clips whose condition is zeroed, to make guidance possible.
        pictures: the pictures a request brings, in the order in which they travel.
        holds_ends: whether its two pictures are the first and the last frame of the result (model.media.end_frames).
        fields: request fields, besides the pictures, that this task has beyond those every task has.
    """

    name: str
    concat_latents: int
    concat_masks: int
    context: ContextSource
    context_tokens: int
    vector: tuple[VectorField, ...]
    augmentation: Augmentation
    frames: tuple[int, ...]
    guidance: GuidanceShape
    guidance_range: tuple[float, float]
    condition_dropout: float
    pictures: tuple[str, ...]
    holds_ends: bool
    fields: frozenset[str]

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


FRAME_INTERPOLATION = TaskSpec(
    name="frame-interpolation",
    concat_latents=1,
    concat_masks=1,
    context="image-pair",
    context_tokens=2,
    vector=("fps", "motion_bucket_id", "noise_aug_strength"),
    augmentation="latents",
    frames=(5,),
    guidance="constant",
    guidance_range=(2.0, 2.0),
    condition_dropout=0.1,
    pictures=("image", "last_image"),
    holds_ends=True,
    fields=frozenset({"noise_aug_strength", "resize_mode"}),
)


IMAGE_TO_VIDEO = TaskSpec(
    name="image-to-video",
    concat_latents=1,
    concat_masks=0,
    context="image",
    context_tokens=1,
    vector=("fps", "motion_bucket_id", "noise_aug_strength"),
    augmentation="pixels",
    frames=(14, 25),
    guidance="linear",
    guidance_range=(1.0, 3.0),
    condition_dropout=0.1,
    pictures=("image",),
    holds_ends=False,
    fields=frozenset({"noise_aug_strength", "resize_mode", "min_guidance_scale", "lora", "lora_scale"}),
)


MULTI_VIEW = TaskSpec(
    name="multi-view",
    concat_latents=1,
    concat_masks=0,
    context="image",
    context_tokens=1,
    vector=("fps", "motion_bucket_id", "noise_aug_strength", "elevation"),
    augmentation="pixels",
    frames=(21,),
    guidance="triangular",
    guidance_range=(1.0, 2.5),
    condition_dropout=0.1,
    pictures=("image",),
    holds_ends=False,
    fields=frozenset({"noise_aug_strength", "resize_mode", "min_guidance_scale", "elevation"}),
)


TEXT_TO_VIDEO = TaskSpec(
    name="text-to-video",
    concat_latents=0,
    concat_masks=0,
    context="text",
    context_tokens=77,
    vector=("fps", "motion_bucket_id"),
    augmentation="none",
    frames=(14, 25),
    guidance="constant",
    guidance_range=(7.5, 7.5),
    condition_dropout=0.15,
    pictures=(),
    holds_ends=False,
    fields=frozenset({"prompt", "lora", "lora_scale"}),
)


TASKS: dict[str, TaskSpec] = {
    IMAGE_TO_VIDEO.name: IMAGE_TO_VIDEO,
    TEXT_TO_VIDEO.name: TEXT_TO_VIDEO,
    FRAME_INTERPOLATION.name: FRAME_INTERPOLATION,
    MULTI_VIEW.name: MULTI_VIEW,
}


def task(name: str) -> TaskSpec:
    """The spec of the task called `name`.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in TASKS:
        raise InvalidRequest(f"no task is called {name!r}; there are: {', '.join(sorted(TASKS))}", param="task")
    return TASKS[name]


__all__ = ["TASKS", "TaskSpec", "task"]

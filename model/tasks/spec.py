"""TaskSpec: the single source for what a task is.

From one spec follow the UNet's input channels, what the sampler is fed, which request fields are legal, what training
drops out for guidance, and the export profile. Channel counts are in units of the latent channels C, so that a spec
serves published checkpoints (C = 4) and ours (C = 16).

Source: Blattmann et al. 2023 (arXiv 2311.15127), section 4 and appendix D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        holds_ends: whether its two pictures are the first and the last frame of the result (model.held).
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

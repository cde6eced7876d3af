"""A camera LoRA's examples: clips of one kind of camera motion, conditioned as image-to-video's are.

The bucket follows from the measured flow, but for a share of clips whose bucket is drawn from the whole scale: a LoRA
for a still camera would otherwise only ever hear the lowest bucket, at which the base stands still by itself.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder

from training.config import LoraConfig
from training.data.latents import LatentClip
from training.data.motion_bucket import HIGHEST_BUCKET, LOWEST_BUCKET, MotionMap
from training.objectives.batch import Batch
from training.objectives.examples.drawing import choice, draw_window, uniform
from training.objectives.examples.film import condition_on_first_frame


class CameraExamples:
    """Draws a clip; each is as long as the network's, so it begins at its beginning."""

    def __init__(
        self, config: LoraConfig, clips: list[LatentClip], vae: AutoencoderKLTemporalDecoder, motion: MotionMap
    ) -> None:
        self.config, self.clips, self.vae, self.motion = config, clips, vae, motion

    def example(self, draw: torch.Generator) -> Batch:
        """One clip."""
        window = draw_window(choice(self.clips, draw), self.config.num_frames, draw)
        fps, bucket = window.vector(self.motion)
        if uniform(draw) < self.config.data.bucket_drawn:
            bucket = float(torch.randint(LOWEST_BUCKET, HIGHEST_BUCKET + 1, (), generator=draw))
        return condition_on_first_frame(
            window, self.config.data, self.vae, (fps, bucket), self.config.condition_dropout, draw
        )

"""Image-to-video's examples (paper, section 4.2): film clips, camera moves over photographs, a camera LoRA's clips.

The condition is built as at inference: the first frame with augmentation noise put on its PIXELS, encoded to the mode,
unscaled; its embedding; and [fps - 1, motion bucket, augmentation sigma]. Dropout zeroes both picture paths and keeps
the vector. Fps follows from the clip's stride, the bucket from its measured flow: neither is ever a constant. A camera
LoRA draws a share of its buckets from the whole scale: one for a still camera would otherwise only ever hear the lowest
bucket, at which the base stands still by itself.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from training.config import DenoiserConfig, LoraConfig
from training.data.config import CameraData, FilmData
from training.data.latents import LatentClip
from training.data.motion_bucket import HIGHEST_BUCKET, LOWEST_BUCKET, MotionMap
from training.objectives.examples.drawing import (
    ClipWindow,
    choice,
    draw_window,
    lognormal,
    noisy_latent,
    uniform,
    usable_strides,
)
from training.objectives.protocol import Batch


def condition_on_first_frame(
    window: ClipWindow,
    data: FilmData | CameraData,
    vae: AutoencoderKLTemporalDecoder,
    fps_and_bucket: tuple[float, float],
    dropout: float,
    draw: torch.Generator,
) -> Batch:
    """A stretch of a clip, conditioned on its first frame.

    Args:
        fps_and_bucket: fps - 1, and the motion bucket.
        dropout: share of conditions that are zeroed.
    """
    noise = lognormal(data.noise_aug_log_mean, data.noise_aug_log_std, draw)
    first = window.index[0]
    concat = noisy_latent(vae, window.clip, first, noise, draw)
    context = torch.from_numpy(window.clip.embeds[first])[None]
    if uniform(draw) < dropout:
        concat, context = torch.zeros_like(concat), torch.zeros_like(context)
    vector: Tensor = torch.tensor([*fps_and_bucket, noise])
    clean = window.latents * float(vae.config["scaling_factor"])
    name = f"{window.clip.clip.item.id}/{window.index}"
    return Batch(clean[None], concat.expand(1, len(clean), -1, -1, -1), context[None], vector[None], (name,))


class FilmExamples:
    """Draws a clip, its stride and its start."""

    def __init__(
        self,
        config: DenoiserConfig,
        data: FilmData,
        clips: list[LatentClip],
        vae: AutoencoderKLTemporalDecoder,
        motion: MotionMap,
    ) -> None:
        self.config, self.data, self.vae, self.motion = config, data, vae, motion
        self.clips = [c for c in clips if c.clip.item.kind == "shot" and usable_strides(c, config.num_frames)]
        self.moves = [c for c in clips if c.clip.item.kind == "move"]
        self.weights = torch.tensor([float(len(c.latents)) for c in self.clips]).sqrt()

    def example(self, draw: torch.Generator) -> Batch:
        """One clip."""
        window = draw_window(self._choose(draw), self.config.num_frames, draw)
        return condition_on_first_frame(
            window, self.data, self.vae, window.vector(self.motion), self.config.condition_dropout, draw
        )

    def _choose(self, draw: torch.Generator) -> LatentClip:
        if self.moves and uniform(draw) < self.data.still_share:
            return choice(self.moves, draw)
        return self.clips[int(torch.multinomial(self.weights, 1, generator=draw))]


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

"""Image-to-video's examples: film clips, and camera moves over photographs (paper, section 4.2).

The condition is built as at inference: the first frame with augmentation noise put on its PIXELS, encoded to the mode,
unscaled; its embedding; and [fps - 1, motion bucket, augmentation sigma]. Dropout zeroes both picture paths and keeps
the vector. Fps follows from the clip's stride, the bucket from its measured flow: neither is ever a constant.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from training.config import CameraData, DenoiserConfig, FilmData
from training.data.latents import LatentClip
from training.data.motion_bucket import MotionMap
from training.objectives.batch import Batch
from training.objectives.examples.drawing import Stretch, chance, noisy_latent, one_of, strength, stretch, strides_of


def pictured(
    seen: Stretch,
    data: FilmData | CameraData,
    vae: AutoencoderKLTemporalDecoder,
    told: tuple[float, float],
    dropout: float,
    draw: torch.Generator,
) -> Batch:
    """A stretch of a clip, conditioned on its first frame.

    Args:
        told: fps - 1, and the motion bucket.
        dropout: share of conditions that are zeroed.
    """
    noise = strength(data.noise_aug_log_mean, data.noise_aug_log_std, draw)
    first = seen.index[0]
    concat = noisy_latent(vae, seen.clip, first, noise, draw)
    context = torch.from_numpy(seen.clip.embeds[first])[None]
    if chance(draw) < dropout:
        concat, context = torch.zeros_like(concat), torch.zeros_like(context)
    vector: Tensor = torch.tensor([*told, noise])
    clean = seen.latents * float(vae.config["scaling_factor"])
    name = f"{seen.clip.clip.item.id}/{seen.index}"
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
        self.clips = [c for c in clips if c.clip.item.kind == "shot" and strides_of(c, config.num_frames)]
        self.moves = [c for c in clips if c.clip.item.kind == "move"]
        self.weights = torch.tensor([float(len(c.latents)) for c in self.clips]).sqrt()

    def example(self, draw: torch.Generator) -> Batch:
        """One clip."""
        seen = stretch(self._choose(draw), self.config.num_frames, draw)
        return pictured(seen, self.data, self.vae, seen.vector(self.motion), self.config.condition_dropout, draw)

    def _choose(self, draw: torch.Generator) -> LatentClip:
        if self.moves and chance(draw) < self.data.still_share:
            return one_of(self.moves, draw)
        return self.clips[int(torch.multinomial(self.weights, 1, generator=draw))]

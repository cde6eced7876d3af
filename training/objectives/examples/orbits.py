"""Multi-view's examples: orbits around objects, as image-to-video's but for the elevation (paper, section 4.5).

An orbit begins at any of its views and closes, so any view may be the given one. All clips have one length, so one
speed: frame rate and motion bucket are told as constants, by design.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder

from training.config import DenoiserConfig
from training.data.config import OrbitData
from training.data.latents import LatentClip
from training.objectives.examples.drawing import choice, lognormal, noisy_latent, uniform
from training.objectives.protocol import Batch


class OrbitExamples:
    """Draws an orbit and the view it begins at.

    Args:
        orbits: their latents, and the elevation of each in degrees.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        data: OrbitData,
        orbits: list[tuple[LatentClip, float]],
        vae: AutoencoderKLTemporalDecoder,
    ) -> None:
        self.config, self.data, self.orbits, self.vae = config, data, orbits, vae
        self.clips = [clip for clip, _ in orbits]
        self.scaling = float(vae.config["scaling_factor"])

    def example(self, draw: torch.Generator) -> Batch:
        """One orbit."""
        data, views = self.data, self.config.num_frames
        clip, elevation = choice(self.orbits, draw)
        first = int(torch.randint(0, views, (), generator=draw))
        clean = torch.from_numpy(clip.latents).float().roll(-first, 0) * self.scaling
        noise = lognormal(data.noise_aug_log_mean, data.noise_aug_log_std, draw)
        concat = noisy_latent(self.vae, clip, first, noise, draw)
        context = torch.from_numpy(clip.embeds[first])[None]
        if uniform(draw) < self.config.condition_dropout:
            concat, context = torch.zeros_like(concat), torch.zeros_like(context)
        vector = torch.tensor([[data.fps - 1.0, float(data.motion_bucket_id), noise, elevation]])
        name = f"{clip.clip.item.id}/{first}"
        return Batch(clean[None], concat.expand(1, views, -1, -1, -1), context[None], vector, (name,))

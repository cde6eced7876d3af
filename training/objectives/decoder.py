"""Fitting a decoder to a kind of picture: the encoder, and with it every latent, stays as it is.

A denoiser trained on an autoencoder's latents may be decoded by any decoder of the same encoder. One that was trained
on film draws ripples around plain objects on white; one that goes on training on such objects does not (docs/adr/0012).
The paper's own video decoder is of this kind: the image model's, fitted to clips.

The decoder's late layers train alone; what comes before them stays as it was, bit for bit, so that two checkpoints
of one encoder hold the rest in identical files (training.release).

Legend: B clips, F consecutive frames, C latent channels, h, w latent, H, W pixels of a crop.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from training.config import DecoderConfig
from training.data.frames import Clip, random_crops
from training.data.seeding import generator
from training.objectives.vae import AutoencoderObjective, reconstruction_loss

LATE_LAYERS = ("decoder.up_blocks.", "decoder.conv_norm_out.", "decoder.conv_out.", "decoder.time_conv_out.")
"""Prefixes of the names of the decoder's late layers, which a fitted decoder has of its own."""


class DecoderObjective(AutoencoderObjective):
    """The loss: L1 of pixels and of their spatial differences, as the autoencoder's own.

    Args:
        vae: what it begins from, frozen; its late layers are set to train.
        clips: every one of `config.frames` frames at least, and of `config.crop` pixels a side.
    """

    def __init__(self, config: DecoderConfig, vae: AutoencoderKLTemporalDecoder, clips: list[Clip]) -> None:
        super().__init__(vae, clips)
        self.config = config
        for name, p in self.module.named_parameters():
            p.requires_grad_(name.startswith(LATE_LAYERS))

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Reconstruct the crops of iteration `step`."""
        config, draw = self.config, generator(self.config.optim.seed, step)
        pixels = random_crops(self.clips, config.optim.batch, config.frames, config.crop, draw).to(self.device)
        with torch.no_grad():  # on a CPU, torch 2.13 dies in the backward pass of a half-frozen decoder, channels last
            latents = self.vae.encode(pixels).latent_dist.mode().contiguous()
        noise = torch.randn(latents.shape, generator=draw).to(self.device)
        decoded = self.vae.decode(latents + config.latent_noise * noise, num_frames=config.frames).sample
        return reconstruction_loss(decoded, pixels, config.gradient_weight)

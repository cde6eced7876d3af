"""Finetuning an autoencoder so that its latents move with the picture.

EQ-VAE (Kouzelis et al. 2025, arXiv 2502.09509) trains the decoder to give the transformed picture from the transformed
latent, for scalings and quarter turns. A denoiser of video needs it for shifts by a part of a cell, so shifts are drawn
most often here, and the transformed latent is also held to the latent of the transformed picture:

    L = |D(z) - x| + |D(Tz) - Tx| + consistency mean_c |Tz - E(Tx)|_c^2 / var_c(E(Tx)),     z = E(x)

T shifts by 0 to 7 pixels in each direction (latents by bilinear interpolation, pictures exactly: another crop), or
scales.
Both |.| are L1 of pixels and of their spatial differences. Cells and pixels that a shift cannot know are left out.

Legend: N pictures, C latent channels, h, w latent cells, S side of a crop in pixels.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import Tensor, nn
from torch.nn import functional as F

from model.shapes import VAE_STRIDE
from training.config import EquivarianceConfig
from training.data.frames import Clip, random_crops
from training.data.seeding import generator
from training.objectives.vae import AutoencoderObjective, reconstruction_loss

_TRANSFORM = 1
_LEAST_VARIANCE = 1e-6


def shifted(latents: Tensor, down: int, right: int) -> Tensor:
    """Latents of a picture shifted by so many pixels, by bilinear interpolation: [N, C, h - 1, w - 1].

    Cell (y, x) becomes what lies at (y + down / 8, x + right / 8).

    Args:
        down, right: 0 to 7.
    """
    for dim, pixels in ((-2, down), (-1, right)):
        share = pixels / VAE_STRIDE
        size = latents.shape[dim] - 1
        latents = (1 - share) * latents.narrow(dim, 0, size) + share * latents.narrow(dim, 1, size)
    return latents


def shift_error(encode: nn.Module, pixels: Tensor, down: int, right: int) -> Tensor:
    """Squared error of the shifted latent against the latent of the shifted picture, as a share of its variance.

    The share of each channel by itself, and the mean over channels: as one share of all, an encoder lowers it by making
    its smooth channels larger, while the details stay in small channels that do not move (docs/adr/0013).

    Args:
        encode: gives latents [N, C, h, w] of pictures.
        pixels: [N, 3, S + 8, S + 8] in [-1, 1].
    """
    side = pixels.shape[-1] - VAE_STRIDE
    moved = encode(pixels[..., down : down + side, right : right + side])
    ours = shifted(encode(pixels[..., :side, :side]), down, right)
    target = moved[..., :-1, :-1]
    inner = (..., slice(1, -1), slice(1, -1))
    return _apart(ours[inner], target[inner])


def _apart(ours: Tensor, target: Tensor) -> Tensor:
    """Mean over channels of the squared error as a share of the channel's variance; latents [N, C, h, w]."""
    error = (ours - target).pow(2).mean(dim=(0, 2, 3))
    return (error / target.detach().var(dim=(0, 2, 3)).clamp_min(_LEAST_VARIANCE)).mean()


class EquivarianceObjective(AutoencoderObjective):
    """The loss above, on single pictures: the temporal layers stay as they are.

    Args:
        vae: what it begins from; its encoder and its spatial layers are set to train.
        clips: every one at least `config.crop` + 8 pixels a side.
    """

    def __init__(self, config: EquivarianceConfig, vae: AutoencoderKLTemporalDecoder, clips: list[Clip]) -> None:
        super().__init__(vae, clips)
        self.config = config
        for layer in self.module.modules():
            if isinstance(layer, ResnetBlock2D):
                layer.__dict__.pop("forward", None)  # a branch that ends in zeros was skipped; now it may learn
        self.module.requires_grad_(True)
        for layer in self.module.modules():
            if isinstance(layer, TemporalResnetBlock | Attention):
                layer.requires_grad_(False)
        vae.decoder.time_conv_out.requires_grad_(False)

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents [N, C, h, w]: the mode."""
        return cast(Tensor, self.vae.encode(pixels).latent_dist.mode())

    def decode(self, latents: Tensor, draw: torch.Generator) -> Tensor:
        """Pictures of latents with a little noise on them."""
        noise = torch.randn(latents.shape, generator=draw).to(self.device)
        decoded = self.vae.decode(latents + self.config.latent_noise * noise, num_frames=1)
        return cast(Tensor, decoded.sample)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Crops of iteration `step`, and the same crops transformed."""
        config = self.config
        draw = generator(config.optim.seed, step)
        wide = random_crops(self.clips, config.optim.batch, 1, config.crop + VAE_STRIDE, draw).to(self.device)
        pixels = wide[..., : config.crop, : config.crop]
        latents = self.encode(pixels)
        moved, moved_latents = self._transformed(wide, latents, generator(config.optim.seed, step, _TRANSFORM))
        own = self.encode(moved)
        rebuilt, rebuilt_moved = self.decode(latents, draw), self.decode(moved_latents, draw)
        inner = (..., slice(1, -1), slice(1, -1))
        apart = _apart(moved_latents[inner], own[inner])
        near = (..., slice(VAE_STRIDE, -VAE_STRIDE), slice(VAE_STRIDE, -VAE_STRIDE))
        plain = reconstruction_loss(rebuilt, pixels, config.gradient_weight)[0]
        plain_moved = reconstruction_loss(rebuilt_moved[near], moved[near], config.gradient_weight)[0]
        total = plain + plain_moved + config.consistency * apart
        with torch.no_grad():
            psnr = 10 * torch.log10(4 / F.mse_loss(rebuilt, pixels))
            psnr_moved = 10 * torch.log10(4 / F.mse_loss(rebuilt_moved[near], moved[near]))
        parts = {"apart": apart.item(), "psnr": psnr.item(), "psnr_moved": psnr_moved.item(), "l1": plain.item()}
        return total, parts

    def _transformed(self, wide: Tensor, latents: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """(T x, T z) of one drawn transformation; both cover the same place."""
        side = self.config.crop

        def integer(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=draw))

        if float(torch.rand((), generator=draw)) < self.config.scale_share:
            cells = latents.shape[-1] + (-2, -1, 1, 2)[integer(0, 4)]
            picture = F.interpolate(
                wide[..., :side, :side], size=(cells * VAE_STRIDE,) * 2, mode="bicubic", antialias=True
            )
            return picture.clamp(-1, 1), F.interpolate(latents, size=(cells, cells), mode="bicubic", antialias=True)
        down, right = integer(0, VAE_STRIDE), integer(0, VAE_STRIDE)
        smaller = side - VAE_STRIDE
        return wide[..., down : down + smaller, right : right + smaller], shifted(latents, down, right)

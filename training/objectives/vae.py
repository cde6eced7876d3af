"""Autoencoder training in three phases, each starting as an exact no-op on the one before.

Legend: N pictures or B*T frames, C latent channels, H, W pixels of a crop.

1. Skeleton: every residual branch is off, so encoder and decoder are short stacks of convolutions. They reach the best
   such a stack can do in minutes. The encoder's target is the whitened PCA of 8x8 patches, so latents have known
   variance by construction. The encoder is finished then, and frozen: a denoiser may start on its latents.
2. Spatial: the decoder's residual branches join (their last convolution starts at zero).
3. Temporal: the decoder's temporal layers join, likewise, on crops of several consecutive frames.

Attention starts, and stays, at zero: crops teach it nothing about a whole picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import Tensor, nn
from torch.nn import functional as F

from model.media.video import Frames
from model.optimized.rewrites import temporal_convolutions, without_branch
from model.presets import preset
from model.vae import build_vae
from training.config import VAEConfig
from training.data.frames import Clip, random_crops
from training.data.seeding import generator
from training.initial_weights import anchor, zero_branches
from training.objectives.protocol import backward_of

PATCH = 8


class PatchPCA(nn.Module):
    """The encoder's target: 8x8 patches projected on their leading principal components, with chosen variances."""

    def __init__(self, pixels: Tensor, channels: int, whitening: float) -> None:
        """Fit on pictures [N, 3, H, W] in [-1, 1]."""
        super().__init__()
        patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2)
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
        values, vectors = values.flip(0)[:channels], vectors.flip(1)[:, :channels]
        scale = values ** (-whitening / 2)
        scale = scale / (values * scale**2).mean().sqrt()
        weight = (vectors * scale).T.reshape(channels, 3, PATCH, PATCH)
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", -(vectors * scale).T @ mean)

    def forward(self, pixels: Tensor) -> Tensor:
        """Target latents [N, C, h, w]."""
        return F.conv2d(pixels, cast(Tensor, self.weight), cast(Tensor, self.bias), stride=PATCH)


def prepare(vae: AutoencoderKLTemporalDecoder) -> None:
    """Zero every residual branch, freeze the attentions so, and anchor the decoder's last normalisation."""
    temporal_convolutions(vae)
    zero_branches(vae)
    for layer in vae.modules():
        if isinstance(layer, Attention):
            layer.requires_grad_(False)
    anchor(cast(nn.Conv2d, vae.decoder.up_blocks[-2].upsamplers[0].conv))
    # logvar is never read, so it is left constant; the last convolution over time starts as one over space alone.
    with torch.no_grad():
        vae.decoder.time_conv_out.weight[:, :, ::2].zero_()
        channels = int(vae.config["latent_channels"])
        vae.quant_conv.weight[channels:].zero_()
        vae.quant_conv.bias[channels:].fill_(-6.0)


def switch_branches(vae: AutoencoderKLTemporalDecoder, *, spatial: bool, temporal: bool) -> None:
    """Turn residual branches on or off: off, they are neither computed nor trained."""
    encoder = set(vae.encoder.modules())
    for layer in vae.modules():
        if isinstance(layer, ResnetBlock2D | TemporalResnetBlock):
            on = layer not in encoder and (spatial if isinstance(layer, ResnetBlock2D) else temporal)
            layer.__dict__.pop("forward", None)
            if not on:
                layer.__dict__["forward"] = without_branch(layer)
            for name, p in layer.named_parameters():
                p.requires_grad_(on or "shortcut" in name)


def differences(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical first differences."""
    return pixels[..., :, 1:] - pixels[..., :, :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


def reconstruction_loss(decoded: Tensor, pixels: Tensor, gradient_weight: float) -> tuple[Tensor, dict[str, float]]:
    """L1 of pixels [N, 3, H, W] plus `gradient_weight` times the L1 of their first differences in space.

    Returns:
        The loss; and for the log `l1`, `edges` and `psnr` in dB of pictures in [-1, 1].
    """
    l1 = F.l1_loss(decoded, pixels)
    pairs = zip(differences(decoded), differences(pixels), strict=True)
    edges = torch.stack([F.l1_loss(ours, theirs) for ours, theirs in pairs]).mean()
    with torch.no_grad():
        psnr = 10 * torch.log10(4 / F.mse_loss(decoded, pixels))
    return l1 + gradient_weight * edges, {"l1": l1.item(), "edges": edges.item(), "psnr": psnr.item()}


class AutoencoderObjective(ABC):
    """What the objectives of an autoencoder share: it is the network, and crops of clips are what it trains on.

    Args:
        vae: what trains.
        clips: what crops are drawn from.
    """

    def __init__(self, vae: AutoencoderKLTemporalDecoder, clips: list[Clip]) -> None:
        self.vae, self.clips = vae, clips

    @property
    def module(self) -> nn.Module:
        """The autoencoder."""
        return cast(nn.Module, self.vae)

    @property
    def device(self) -> torch.device:
        """Where it trains. Crops and noise are drawn on the CPU, and are so the same everywhere."""
        return next(self.module.parameters()).device

    def enter(self, step: int) -> None:  # noqa: B027 - not every one has phases
        """Begin a phase; without phases, nothing."""

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied by; without phases, 1."""
        return 1.0

    def names(self, step: int) -> list[str]:
        """The clips that crops are drawn from."""
        return [f"crops of {clip.item.id}" for clip in self.clips]

    def samples(self, step: int) -> dict[str, Frames]:
        """None: its log says how well it reconstructs."""
        return {}

    def backward(self, step: int) -> dict[str, float]:
        """The gradients of iteration `step`."""
        return backward_of(*self.loss(step))

    @abstractmethod
    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of iteration `step`, and its parts for the log."""


class VAEObjective(AutoencoderObjective):
    """The loss: L1 of pixels and of their spatial differences, and the latents' distance from their target."""

    def __init__(self, config: VAEConfig, clips: list[Clip], device: torch.device | None = None) -> None:
        torch.manual_seed(config.optim.seed)
        super().__init__(build_vae(preset(config.preset)), clips)
        self.config = config
        prepare(self.vae)
        sample = self.crops(step=-1, count=512, frames=1)
        self.target = PatchPCA(sample, int(self.vae.config["latent_channels"]), config.whitening).to(device)
        self.module.to(device)

    def enter(self, step: int) -> None:
        """Switch branches on as their phase begins."""
        spatial, temporal = step >= self.config.skeleton_until, step >= self.config.spatial_until
        switch_branches(self.vae, spatial=spatial, temporal=temporal)
        if spatial:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)

    def rate(self, step: int) -> float:
        """Share of the scheduled learning rate: rises again from zero as each later phase begins."""
        began = max(
            (start for start in (self.config.skeleton_until, self.config.spatial_until) if step >= start), default=0
        )
        return min(1.0, (step - began + 1) / self.config.phase_warmup) if began else 1.0

    def crops(self, step: int, count: int, frames: int) -> Tensor:
        """`count` crops of `frames` consecutive frames, [count * frames, 3, H, W] in [-1, 1], mirrored at random."""
        return random_crops(self.clips, count, frames, self.config.crop, generator(self.config.optim.seed, step))

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Reconstruct the crops of iteration `step`."""
        config = self.config
        frames = config.frames if step >= config.spatial_until else 1
        count = config.optim.batch if step < config.skeleton_until else config.phase_batch
        pixels = self.crops(step, count // frames, frames).to(self.device)
        with torch.set_grad_enabled(step < config.skeleton_until):
            latents = self.vae.encode(pixels).latent_dist.mode()
            target_error = F.mse_loss(latents, self.target(pixels))
        noise = torch.randn(latents.shape, generator=generator(config.optim.seed, step, 1)).to(self.device)
        decoded = self.vae.decode(latents + config.latent_noise * noise, num_frames=frames).sample
        loss, parts = reconstruction_loss(decoded, pixels, config.gradient_weight)
        return loss + config.target_weight * target_error, {**parts, "held": target_error.item()}

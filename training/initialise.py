"""How a network starts: residual branches at zero, and offsets that keep normalisation from losing a picture's mean.

- Every residual branch ends in a layer that starts at zero, so the network starts as a short stack of convolutions and
  its skip connections (as EDM's networks do; Karras et al. 2022, appendix F.2 follows Dhariwal and Nichol 2021).
- GroupNorm takes away the mean of a group of channels over the whole picture. With two channels a group, that mean is
  the picture's brightness or colour. Opposite constant offsets in neighbouring channels (anchors) dominate the group's
  statistics, so what the picture adds survives.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from model.errors import DataError

ANCHOR = 2.0


def branch_ends(network: nn.Module) -> Iterable[nn.Module]:
    """The last layer of every residual branch."""
    for layer in network.modules():
        if isinstance(layer, ResnetBlock2D | TemporalResnetBlock):
            yield cast(nn.Module, layer.conv2)
        elif isinstance(layer, Attention):
            yield cast(nn.ModuleList, layer.to_out)[0]
        elif isinstance(layer, FeedForward):
            yield cast(nn.ModuleList, layer.net)[-1]
        elif isinstance(layer, TransformerSpatioTemporalModel):
            yield cast(nn.Module, layer.proj_out)


def zero_branches(network: nn.Module) -> None:
    """Let every residual branch start as nothing."""
    for layer in branch_ends(network):
        nn.init.zeros_(cast(Tensor, layer.weight))
        if layer.bias is not None:
            nn.init.zeros_(cast(Tensor, layer.bias))


@torch.no_grad()
def anchor(conv: nn.Conv2d) -> None:
    """Give neighbouring output channels of a convolution opposite constant offsets."""
    bias = cast(Tensor, conv.bias)
    bias.fill_(ANCHOR)
    bias[1::2] = -ANCHOR


@torch.no_grad()
def start_denoiser(unet: UNetSpatioTemporalConditionModel, copies: float = 0.5) -> None:
    """Zero the denoiser's branches, and let its outermost skip connection repeat the condition.

    A small denoiser with little time learns slowest what is simplest: that every frame looks like the given one. So the
    path conv_in -> skip -> last shortcut -> normalisation -> SiLU -> conv_out starts as a copy. Each input channel u
    travels as the pair (u, -u) in one normalisation group, whose mean is then always zero, and since
    silu(u) - silu(-u) = u the nonlinearity drops out. The raw output starts as -`copies` times the condition latents,
    which at high noise is what EDM's equation 7 wants of it.

    Raises:
        DataError: the outermost width is not twice the input channels, or the groups do not hold two channels.
    """
    zero_branches(cast(nn.Module, unet))
    inward, outward = cast(nn.Conv2d, unet.conv_in), cast(nn.Conv2d, unet.conv_out)
    shortcut = cast(nn.Conv2d, unet.up_blocks[-1].resnets[-1].spatial_res_block.conv_shortcut)
    channels, width = inward.in_channels, inward.out_channels
    latent = outward.out_channels
    if width != 2 * channels or width != 2 * unet.conv_norm_out.num_groups or channels != 2 * latent:
        raise DataError(f"a copying start takes {channels} pairs in {2 * channels} channels, not {width}")
    pairs = torch.stack([torch.eye(channels), -torch.eye(channels)], dim=1).reshape(width, channels)
    for layer in (inward, outward, shortcut):
        layer.weight.mul_(0.1)
        cast(Tensor, layer.bias).zero_()
    inward.weight[:, :, 1, 1] += pairs
    shortcut.weight[:, -width:, 0, 0] += torch.eye(width)
    outward.weight[:, :, 1, 1] -= copies * pairs[:, latent:].T

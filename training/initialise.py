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


def start_denoiser(unet: UNetSpatioTemporalConditionModel) -> None:
    """Zero the denoiser's branches and anchor what its last normalisation sees."""
    zero_branches(cast(nn.Module, unet))
    anchor(cast(nn.Conv2d, unet.up_blocks[-1].resnets[-1].spatial_res_block.conv_shortcut))

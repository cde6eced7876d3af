"""Faster forward functions of a denoiser's two repeated blocks for training: the same sums, fewer passes over memory.

`speed_up` swaps the class of diffusers' SpatioTemporalResBlock and TransformerSpatioTemporalModel for those below, in
place; parameters, their keys and their gradients stay (to rounding: tests/unit/training/test_fast_blocks.py). It is the
training counterpart of the fused blocks that serve (which write in place and hold weights constant). What is saved:

- convolutions and attention share one layout, [B, T, H, W, C]: nothing is copied between them, nor from space to time;
- queries, keys and values come from one matrix product, over weights that are joined at each call;
- a context is projected once a clip, not once a frame and once a pixel; where it is one token, its attention is a
  constant of the clip, and no queries are computed (model.optimized.rewrites);
- a temporal residual block is added to its input in the same pass as it is blended with it.

Clips only: diffusers' image_only_indicator has to be all zero. Joint batches of pictures take diffusers' own blocks.

Legend: B rows, T frames, C channels, H, W size at the layer, N = H W tokens; K context tokens, D their width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.resnet import AlphaBlender, SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn
from torch.nn import functional as F


class FastResBlock(SpatioTemporalResBlock):  # type: ignore[misc]
    """A residual block in space, then one in time, blended."""

    def forward(
        self, hidden_states: Tensor, temb: Tensor | None = None, image_only_indicator: Tensor | None = None
    ) -> Tensor:
        """[B*T, C, H, W] to [B*T, C', H, W]; temb [B*T, E]; image_only_indicator [B, T], all zero."""
        assert image_only_indicator is not None and temb is not None
        rows, frames = image_only_indicator.shape
        x = _spatial(self.spatial_res_block, hidden_states, temb)
        height, width = x.shape[-2:]
        tokens = x.permute(0, 2, 3, 1).reshape(rows, frames, height * width, -1)
        clip = tokens.permute(0, 3, 1, 2)  # [B, C, T, N], channels last
        branch = _temporal(self.temporal_res_block, clip, temb.unflatten(0, (rows, frames)))
        mixed = torch.addcmul(clip, branch, _temporal_share(self.time_mixer).to(branch.dtype))
        return mixed.permute(0, 2, 3, 1).reshape(-1, height, width, x.shape[1]).permute(0, 3, 1, 2)


def _spatial(block: Any, x: Tensor, temb: Tensor) -> Tensor:
    hidden = block.conv1(F.silu(block.norm1(x)))
    hidden = hidden + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    hidden = block.conv2(F.silu(block.norm2(hidden)))
    return cast(Tensor, hidden + (x if block.conv_shortcut is None else block.conv_shortcut(x)))


def _temporal(block: Any, clip: Tensor, temb: Tensor) -> Tensor:
    """What a TemporalResnetBlock adds to its input [B, C, T, N]."""
    hidden = _over_time(block.conv1, F.silu(block.norm1(clip)))
    hidden = hidden + block.time_emb_proj(F.silu(temb)).transpose(1, 2)[..., None]
    return _over_time(block.conv2, F.silu(block.norm2(hidden)))


def _over_time(conv: nn.Conv3d, clip: Tensor) -> Tensor:
    """A Conv3d with kernel (3, 1, 1) over [B, C, T, N]."""
    return F.conv2d(clip, conv.weight.squeeze(-1), conv.bias, padding=(1, 0))


class FastTransformer(TransformerSpatioTemporalModel):  # type: ignore[misc]
    """Transformer blocks in space and in time, in turn."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        image_only_indicator: Tensor | None = None,
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        """[B*T, C, H, W] to the same; context [B*T, K, D], the same for every frame of a clip."""
        assert image_only_indicator is not None and encoder_hidden_states is not None and not return_dict
        rows, frames = image_only_indicator.shape
        height, width = hidden_states.shape[-2:]
        context = encoder_hidden_states.unflatten(0, (rows, frames))[:, 0]
        tokens = self.norm(hidden_states).permute(0, 2, 3, 1).flatten(1, 2)
        x = self.proj_in(tokens).unflatten(0, (rows, frames))  # [B, T, N, C]
        index = torch.arange(frames, device=x.device)
        frame_embedding = self.time_pos_embed(self.time_proj(index).to(x.dtype))[:, None]
        share = _temporal_share(self.time_mixer).to(x.dtype)
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            x = _in_space(spatial, x, context)
            x = torch.lerp(x, _in_time(temporal, x + frame_embedding, context), share)
        out = self.proj_out(x).flatten(0, 1).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return (out + hidden_states,)


def _in_space(block: Any, x: Tensor, context: Tensor) -> Tensor:
    x = x + _self_attention(block.attn1, block.norm1(x))
    x = x + _cross_attention(block, x, context)
    return x + _geglu(block.ff, block.norm3(x))


def _in_time(block: Any, x: Tensor, context: Tensor) -> Tensor:
    x = x + _geglu(block.ff_in, block.norm_in(x))
    x = x + _self_attention(block.attn1, block.norm1(x), over_time=True)
    x = x + _cross_attention(block, x, context)
    return x + _geglu(block.ff, block.norm3(x))


def _self_attention(attn: Any, x: Tensor, over_time: bool = False) -> Tensor:
    """Attention along N of [B, T, N, C], or along T."""
    projected = F.linear(x, torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight]))
    if over_time:
        projected = projected.transpose(1, 2)
    query, key, value = (_heads(part, attn.heads) for part in projected.chunk(3, -1))
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(*projected.shape[:-1], -1)
    return cast(Tensor, attn.to_out[0](mixed.transpose(1, 2) if over_time else mixed))


def _cross_attention(block: Any, x: Tensor, context: Tensor) -> Tensor:
    """Cross-attention of x [B, T, N, C] to the clip's context [B, K, D]."""
    attn = block.attn2
    if context.shape[1] == 1:
        return cast(Tensor, attn.to_out[0](attn.to_v(context)))[:, None]
    query = _heads(attn.to_q(block.norm2(x)).flatten(1, 2)[:, None], attn.heads)
    key, value = (_heads(to(context)[:, None], attn.heads) for to in (attn.to_k, attn.to_v))
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
    return cast(Tensor, attn.to_out[0](mixed))


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, M, L, C] to [B*M, heads, L, C / heads]."""
    return cast(Tensor, x.unflatten(-1, (heads, -1)).flatten(0, 1).transpose(1, 2))


def _geglu(layer: Any, x: Tensor) -> Tensor:
    """W2 (a * gelu(b)), with (a, b) = W1 x (Shazeer 2020, arXiv 2002.05202)."""
    wide, gate = layer.net[0].proj(x).chunk(2, -1)
    return cast(Tensor, layer.net[2](wide * F.gelu(gate)))


def _temporal_share(blender: AlphaBlender) -> Tensor:
    """How much of the temporal branch a blend over video takes: a number, learnt where the blender learns it."""
    mix = cast(Tensor, blender.mix_factor)
    weight = mix if blender.merge_strategy == "fixed" else mix.sigmoid()
    return (weight if blender.switch_spatial_to_temporal_mix else 1 - weight).reshape(())


def speed_up(network: nn.Module) -> int:
    """Give every block of the two kinds its faster forward function, in place; returns how many.

    Convolutions' weights are laid channels-last, so that what they give is, too.
    """
    count = 0
    for layer in network.modules():
        if isinstance(layer, TransformerSpatioTemporalModel):
            layer.__class__ = FastTransformer
            count += 1
        elif isinstance(layer, SpatioTemporalResBlock):
            layer.__class__ = FastResBlock
            count += 1
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return count

"""Fused forward functions of the UNet's and the decoder's two repeated blocks: the same sums, fewer passes over memory.

`fuse` swaps the class of diffusers' SpatioTemporalResBlock and TransformerSpatioTemporalModel for those below, in
place; state-dict keys stay. Output changes by float rounding only (tests/unit/model/optimized/test_fused_blocks.py
holds that against the unmodified networks). What is saved:

- queries, keys and values of self-attention come from one matrix product (the three weights become views of one);
- in channels-last layout, pixels and tokens lie in memory alike, [B, T, H, W, C], so that going from convolutions to
  attention and from space to time copies nothing;
- blends are one pass: x_s a + (x_s + r)(1 - a) = x_s + (1 - a) r in residual blocks, a linear interpolation elsewhere;
- frame embeddings, which depend on nothing but the weights, are computed once;
- a context is projected once a clip, not once a frame and once a pixel; where it is ONE token, its attention is a
  constant of the clip (model.optimized.rewrites), and the normalisation of queries nobody reads is left out;
- activations and residual sums are written in place.

For networks that train no more, over video (diffusers' image_only_indicator all zero).

Legend: B rows, T frames, C channels, H, W size at the layer, N = H W tokens; K context tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import AlphaBlender, SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn
from torch.nn import functional as F

from model.optimized import kernel_blocks
from model.optimized.attention import Attend, scaled_dot_product
from model.optimized.kernel_blocks import MAX_ELEMENTS
from model.optimized.kernels.block_ops import BlockOps
from model.optimized.rewrites import PhaseUpsample2D, blend_weight, can_use_phases, phases, skip_zero_branches
from model.weights import channels_last


class FusedResBlock(SpatioTemporalResBlock):  # type: ignore[misc]
    """A residual block in space, then one in time, blended."""

    ops: BlockOps | None

    def forward(
        self, hidden_states: Tensor, temb: Tensor | None = None, image_only_indicator: Tensor | None = None
    ) -> Tensor:
        """[B*T, C, H, W] to [B*T, C', H, W]; temb [B*T, E]; image_only_indicator [B, T], all zero."""
        assert image_only_indicator is not None
        rows, frames = image_only_indicator.shape
        if self.ops is not None:
            return kernel_blocks.res_block(self, hidden_states, temb, rows, frames, self.ops)
        x = _spatial(self.spatial_res_block, hidden_states, temb)
        height, width = x.shape[-2:]
        # Through tokens: the strides of axes of length one must be such that the layout is seen to be channels-last.
        tokens = x.permute(0, 2, 3, 1).reshape(rows, frames, height * width, -1)
        clip = tokens.permute(0, 3, 1, 2)  # [B, C, T, N]
        time = None if temb is None else temb.unflatten(0, (rows, frames))
        mixed = _temporal(self.temporal_res_block, clip, time).mul_(self.temporal_share).add_(clip)
        return mixed.permute(0, 2, 3, 1).reshape(-1, height, width, x.shape[1]).permute(0, 3, 1, 2)


def _spatial(block: Any, x: Tensor, temb: Tensor | None) -> Tensor:
    """A ResnetBlock2D of the kind these networks have (no resampling, no scale and shift)."""
    if "forward" in block.__dict__:  # rewritten before (model.optimized.rewrites.skip_zero_branches)
        return cast(Tensor, block(x, temb))
    hidden = block.conv1(F.silu(block.norm1(x), inplace=True))
    if block.time_emb_proj is not None:
        hidden.add_(block.time_emb_proj(_silu(temb))[:, :, None, None])
    hidden = block.conv2(F.silu(block.norm2(hidden), inplace=True))
    through = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return cast(Tensor, hidden.add_(through))


def _temporal(block: Any, clip: Tensor, temb: Tensor | None) -> Tensor:
    """The branch of a TemporalResnetBlock, [B, C, T, N]: what it adds to its input."""
    if "forward" in block.__dict__:  # rewritten before: its branch ends in zeros
        return torch.zeros_like(clip)
    hidden = _temporal_conv(block.conv1, F.silu(block.norm1(clip), inplace=True))
    if block.time_emb_proj is not None:
        hidden.add_(block.time_emb_proj(_silu(temb)).transpose(1, 2)[..., None])
    return _temporal_conv(block.conv2, F.silu(block.norm2(hidden), inplace=True))


def _silu(temb: Tensor | None) -> Tensor:
    assert temb is not None  # a block that projects an embedding is given one
    return F.silu(temb)


def _temporal_conv(conv: nn.Conv3d, clip: Tensor) -> Tensor:
    """A Conv3d with kernel (3, 1, 1) over [B, C, T, N]."""
    return F.conv2d(clip, conv.weight.squeeze(-1), conv.bias, padding=(1, 0))


class FusedTransformer(TransformerSpatioTemporalModel):  # type: ignore[misc]
    """Transformer blocks in space and in time, in turn."""

    attend: Attend
    ops: BlockOps | None

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
        if self.ops is not None:
            position = self.frame_embedding(frames, hidden_states.dtype)[:, 0]
            mixed = kernel_blocks.transformer(self, hidden_states, context, position, frames, self.attend, self.ops)
            return (mixed,)
        tokens = self.norm(hidden_states).permute(0, 2, 3, 1).flatten(1, 2)  # [B*T, N, C]
        x = self.proj_in(tokens).unflatten(0, (rows, frames))  # [B, T, N, C]
        position = self.frame_embedding(frames, x.dtype)
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            x = self._in_space(spatial, x, context)
            x = x.lerp_(self._in_time(temporal, x + position, context), self.temporal_share)
        out = self.proj_out(x).flatten(0, 1).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return (out.add_(hidden_states),)

    def frame_embedding(self, frames: int, dtype: torch.dtype) -> Tensor:
        """The frames' position embeddings, [T, 1, C]; cached for the clip length of the network's config."""
        cached = cast(Tensor, self.cached_positions)
        if cached.shape[0] == frames:
            return cached
        index = torch.arange(frames, device=cached.device)
        return cast(Tensor, self.time_pos_embed(self.time_proj(index).to(dtype))[:, None])

    def _in_space(self, block: Any, x: Tensor, context: Tensor) -> Tensor:
        x = self._self_attention(block.attn1, block.norm1(x)).add_(x)
        x = self._add_context(block, x, context)
        return _add_feed_forward(block.ff, block.norm3, x)

    def _in_time(self, block: Any, x: Tensor, context: Tensor) -> Tensor:
        x = _add_feed_forward(block.ff_in, block.norm_in, x)
        mixed = self._self_attention(block.attn1, block.norm1(x), over_time=True)
        x = mixed.add_(x)
        x = self._add_context(block, x, context)
        return _add_feed_forward(block.ff, block.norm3, x)

    def _self_attention(self, attn: Any, x: Tensor, over_time: bool = False) -> Tensor:
        """Attention along N of [B, T, N, C], or along T."""
        projected = F.linear(x, attn.stacked)
        if over_time:
            projected = projected.transpose(1, 2)
        query, key, value = (_heads(part, attn.heads) for part in projected.chunk(3, -1))
        mixed = self.attend(query, key, value).transpose(1, 2).reshape(*projected.shape[:-1], -1)
        mixed = mixed.transpose(1, 2) if over_time else mixed
        return cast(Tensor, attn.to_out[0](mixed))

    def _add_context(self, block: Any, x: Tensor, context: Tensor) -> Tensor:
        """Cross-attention to the clip's context [B, K, D], added to x [B, T, N, C] in place."""
        attn = block.attn2
        if context.shape[1] == 1:
            return x.add_(cast(Tensor, attn.to_out[0](attn.to_v(context)))[:, None])
        query = _heads(attn.to_q(block.norm2(x)).flatten(1, 2)[:, None], attn.heads)
        key, value = (_heads(to(context)[:, None], attn.heads) for to in (attn.to_k, attn.to_v))
        mixed = self.attend(query, key, value).transpose(1, 2).reshape(x.shape)
        return x.add_(cast(Tensor, attn.to_out[0](mixed)))


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, M, L, C] to [B*M, heads, L, C / heads]."""
    return cast(Tensor, x.unflatten(-1, (heads, -1)).flatten(0, 1).transpose(1, 2))


def _add_feed_forward(layer: Any, norm: nn.Module, x: Tensor) -> Tensor:
    """x + W2 (a * gelu(b)), with (a, b) = W1 norm(x): GEGLU (Shazeer 2020, arXiv 2002.05202), written into x.

    On a CPU a few hundred tokens at a time, whose wide activations then stay in a core's own cache; elsewhere as many
    as a kernel's 32-bit indices can count.
    """
    wide = layer.net[0].proj.out_features
    limit = WIDE_NUMBERS if _by_parts(x) else MAX_ELEMENTS
    tokens = max(1, limit // wide)
    if not _by_parts(x) and x.numel() // x.shape[-1] <= tokens:
        return _geglu(layer, norm(x)).add_(x)
    for part in x.view(-1, x.shape[-1]).split(tokens):
        part.add_(_geglu(layer, norm(part)))
    return x


def _geglu(layer: Any, x: Tensor) -> Tensor:
    wide, gate = layer.net[0].proj(x).chunk(2, -1)
    return cast(Tensor, layer.net[2](F.gelu(gate).mul_(wide)))


WIDE_NUMBERS = 128 * 1024
"""Numbers of a feed-forward layer's widest activations that are at work at once on a CPU: half a MiB in float32."""


def _by_parts(x: Tensor) -> bool:
    """Whether work goes in parts that fit a cache: on a CPU, where nothing is traced."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def fuse(network: nn.Module, attend: Attend = scaled_dot_product, ops: BlockOps | None = None) -> int:
    """Give every block of the two kinds its fused forward function, in place; returns how many.

    The network must be where it is to stay, in the dtype it is to have: what is computed once is computed here.

    Args:
        attend: the attention kernel (model.optimized.attention).
        ops: for a GPU, the kernels of what is between matrix products; None for a CPU's way of working, in parts that
            fit its cache.
    """
    count = 0
    with torch.inference_mode(False), torch.no_grad():
        if not any(weight.is_meta for weight in network.parameters()):
            skip_zero_branches(network)
        for layer in list(network.modules()):
            if isinstance(layer, TransformerSpatioTemporalModel):
                _fuse_transformer(layer, attend, int(cast(Any, network).config["num_frames"]))
                layer.ops = ops
                count += 1
            elif isinstance(layer, SpatioTemporalResBlock):
                _set_buffer(layer, "temporal_share", _temporal_share(layer.time_mixer))
                layer.__class__ = FusedResBlock
                layer.ops = ops
                count += 1
            elif can_use_phases(layer):
                small = phases(cast(nn.Conv2d, layer.conv).weight)
                _set_buffer(layer, "phases", small.contiguous(memory_format=torch.channels_last))
                layer.__class__ = PhaseUpsample2D
        _lay_channels_last(network)
        if ops is not None:
            kernel_blocks.use_kernels(network, ops)
    return count


def _lay_channels_last(network: nn.Module) -> None:
    """Convolutions' weights in channels-last layout: what they give then has it too; copied where it differs."""
    for weight in network.parameters():
        weight.data = channels_last(weight.data)


def _fuse_transformer(layer: Any, attend: Attend, frames: int) -> None:
    dtype = layer.proj_in.weight.dtype
    index = torch.arange(frames, device=layer.proj_in.weight.device)
    _set_buffer(layer, "cached_positions", layer.time_pos_embed(layer.time_proj(index).to(dtype))[:, None])
    _set_buffer(layer, "temporal_share", _temporal_share(layer.time_mixer))
    for block in (*layer.transformer_blocks, *layer.temporal_transformer_blocks):
        stack_projections(block.attn1)
    layer.attend = attend
    layer.__class__ = FusedTransformer


def stack_projections(attn: Attention) -> None:
    """One weight [3C, C] for queries, keys and values; the three parameters become views of it, their keys stay."""
    parts = (attn.to_q, attn.to_k, attn.to_v)
    assert not any(part.bias is not None for part in parts)
    stacked = _one_matrix([part.weight.detach() for part in parts])
    for part, view in zip(parts, stacked.chunk(3), strict=True):
        part.weight = nn.Parameter(view, requires_grad=False)
    _set_buffer(attn, "stacked", stacked)


def _one_matrix(weights: Sequence[Tensor]) -> Tensor:
    """The weights below each other: a view where they lie so in memory (model.weights), else a copy."""
    first = weights[0]
    end = first.storage_offset()
    for one in weights:
        if not one.is_contiguous() or one.storage_offset() != end or not _share_storage(one, first):
            return torch.cat(list(weights))
        end += one.numel()
    return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())


def _share_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0


def _temporal_share(blender: AlphaBlender) -> Tensor:
    """How much of the temporal branch a blend over video takes: a number, in the network's dtype."""
    weight = blend_weight(cast(nn.Module, blender), torch.float32).detach()
    share = weight if blender.switch_spatial_to_temporal_mix else 1 - weight
    return share.to(blender.mix_factor.dtype).reshape(())


def _set_buffer(layer: nn.Module, name: str, value: Tensor) -> None:
    """A value of the layer that is in no state dict."""
    layer.register_buffer(name, value.detach(), persistent=False)

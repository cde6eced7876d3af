"""Forward functions of the fused blocks on a GPU: chains of BlockOps over channels-last rows, with no copy in between.

What they compute is what model.optimized.fused_blocks computes on a CPU. There, work goes in parts that fit a core's
cache; here, each intermediate is as large as the clip, so what counts is how often it passes through memory: an
addition is left to the normalisation that reads its sum, an embedding to the GroupNorm that follows it.

Legend: B rows, T frames, C channels, H, W size at the layer, N = H W tokens; K context tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from model.optimized.attention import Attend
from model.optimized.kernels.block_ops import VAE_ATTENTION, BlockOps

MAX_ELEMENTS = 2**31 - 1
"""Of one tensor in a convolution or a matrix product on a GPU, whose kernels count in 32 bits."""


def as_rows(x: Tensor) -> Tensor:
    """[N, C, H, W] to [N, H W, C]: a view where the layout is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def as_picture(rows: Tensor, height: int) -> Tensor:
    """[N, H W, C] to [N, C, H, W] in channels-last layout, a view."""
    return cast(Tensor, rows.unflatten(1, (height, -1)).permute(0, 3, 1, 2))


def res_block(layer: Any, hidden: Tensor, temb: Tensor | None, rows: int, frames: int, ops: BlockOps) -> Tensor:
    """A SpatioTemporalResBlock: [B*T, C, H, W] to [B*T, C', H, W]; temb [B*T, E]."""
    height = hidden.shape[-2]
    block = layer.spatial_res_block
    if "forward" in block.__dict__:  # rewritten before (model.optimized.rewrites.skip_zero_branches)
        x = cast(Tensor, block(hidden, temb))
    else:
        branch = _branch(block, as_rows(hidden), temb, ops, lambda conv, one: conv(as_picture(one, height)))
        through = hidden if block.conv_shortcut is None else block.conv_shortcut(hidden)
        x = branch.add_(through)
    block = layer.temporal_res_block
    if "forward" in block.__dict__:  # its branch ends in zeros
        return x
    clip = as_rows(x).reshape(rows, -1, x.shape[1])  # [B, T N, C]
    branch = _branch(block, clip, temb, ops, lambda conv, one: _over_time(conv, one, frames))
    mixed = torch.addcmul(clip, as_rows(branch), layer.temporal_share)
    return as_picture(mixed.view(rows * frames, -1, mixed.shape[-1]), height)


def _branch(
    block: Any, x: Tensor, temb: Tensor | None, ops: BlockOps, convolve: Callable[[Any, Tensor], Tensor]
) -> Tensor:
    """Twice GroupNorm, SiLU and a convolution, of rows [., L, C]; its embedding is added by the second GroupNorm."""
    hidden = as_rows(convolve(block.conv1, ops.group_norm(x, block.norm1, silu=True)))
    extra, span = None, 1
    if block.time_emb_proj is not None:
        assert temb is not None  # a block that projects an embedding is given one
        extra = block.time_emb_proj(F.silu(temb))
        span = hidden.shape[0] * hidden.shape[1] // len(extra)
    return convolve(block.conv2, ops.group_norm(hidden, block.norm2, silu=True, extra=extra, span=span))


def _over_time(conv: nn.Conv3d, clip: Tensor, frames: int) -> Tensor:
    """A Conv3d with kernel (3, 1, 1) of rows [B, T N, C], to [B, C', T, N]."""
    return F.conv2d(as_picture(clip, frames), conv.weight.squeeze(-1), conv.bias, padding=(1, 0))


def transformer(
    layer: Any, hidden: Tensor, context: Tensor, position: Tensor, frames: int, attend: Attend, ops: BlockOps
) -> Tensor:
    """A TransformerSpatioTemporalModel: [B*T, C, H, W] to the same; context [B, K, D], position [T, C]."""
    tokens = as_rows(hidden)
    x = layer.proj_in(ops.group_norm(tokens, layer.norm, silu=False)).unflatten(0, (-1, frames))  # [B, T, N, C]
    pixels = x.shape[2]
    for spatial, temporal in zip(layer.transformer_blocks, layer.temporal_transformer_blocks, strict=True):
        mixed = _in_space(spatial.attn1, spatial.norm1(x), attend)
        x, normed = _with_context(spatial, x, mixed, context, attend, ops)
        wide = _feed_forward(spatial.ff, normed, ops)
        x, normed = ops.add_layer_norm(x, wide, temporal.norm_in, extra=position, span=pixels, store_extra=False)
        wide = _feed_forward(temporal.ff_in, normed, ops)
        in_time, normed = ops.add_layer_norm(x, wide, temporal.norm1, extra=position, span=pixels)
        attn = temporal.attn1
        mixed = attn.to_out[0](ops.temporal_attention(F.linear(normed, attn.stacked), attn.heads, attend))
        in_time, normed = _with_context(temporal, in_time, mixed, context, attend, ops)
        x = ops.add_lerp(x, in_time, _feed_forward(temporal.ff, normed, ops), layer.temporal_share)
    out = layer.proj_out(x).flatten(0, 1).add_(tokens)
    return as_picture(out, hidden.shape[-2])


def _in_space(attn: Any, x: Tensor, attend: Attend) -> Tensor:
    """Attention over N of [B, T, N, C]."""
    parts = (_heads(part, attn.heads) for part in F.linear(x, attn.stacked).chunk(3, -1))
    return cast(Tensor, attn.to_out[0](attend(*parts).transpose(1, 2).reshape(x.shape)))


def _with_context(
    block: Any, x: Tensor, mixed: Tensor, context: Tensor, attend: Attend, ops: BlockOps
) -> tuple[Tensor, Tensor]:
    """x + mixed + its cross-attention to the context [B, K, D], and the LayerNorm before the feed-forward of that."""
    attn, tokens = block.attn2, x.shape[1] * x.shape[2]
    if context.shape[1] == 1:  # the attention to one token is that token's value
        constant = attn.to_out[0](attn.to_v(context))[:, 0]
        return ops.add_layer_norm(x, mixed, block.norm3, extra=constant, span=tokens)
    x, normed = ops.add_layer_norm(x, mixed, block.norm2)
    query = _heads(attn.to_q(normed).flatten(1, 2)[:, None], attn.heads)
    key, value = (_heads(to(context)[:, None], attn.heads) for to in (attn.to_k, attn.to_v))
    mixed = attn.to_out[0](attend(query, key, value).transpose(1, 2).reshape(x.shape))
    return ops.add_layer_norm(x, mixed, block.norm3)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, M, L, C] to [B*M, heads, L, C / heads]."""
    return cast(Tensor, x.unflatten(-1, (heads, -1)).flatten(0, 1).transpose(1, 2))


def _feed_forward(layer: Any, x: Tensor, ops: BlockOps) -> Tensor:
    """W2 (a * gelu(b)), with (a, b) = W1 x, for as many tokens at once as 32-bit indices can count."""
    tokens = max(1, MAX_ELEMENTS // layer.net[0].proj.out_features)
    flat = x.reshape(-1, x.shape[-1])
    if flat.shape[0] <= tokens:
        return cast(Tensor, layer.net[2](ops.geglu(layer.net[0].proj(flat)))).view(x.shape)
    parts = [layer.net[2](ops.geglu(layer.net[0].proj(part))) for part in flat.split(tokens)]
    return torch.cat(parts).view(x.shape)


class NormSilu(nn.GroupNorm):
    """The GroupNorm before a network's last convolution, with the SiLU that follows it."""

    ops: BlockOps

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] to the same, in channels-last layout."""
        return as_picture(self.ops.group_norm(as_rows(input), self, silu=True), input.shape[-2])


class MatrixAttention:
    """diffusers attention processor for an autoencoder's one head, as matrix products of one picture after another.

    512 numbers are more than flash kernels take in a head; the scores of one picture (170 MB at 72 x 128 cells in half
    precision) fit beside its activations.
    """

    def __init__(self, ops: BlockOps) -> None:
        self._ops = ops

    def __call__(self, attn: Attention, hidden_states: Tensor, temb: Tensor | None = None, **_: object) -> Tensor:
        """Self-attention with its normalisation and residual, [N, C, H, W] to the same."""
        del temb  # an autoencoder has none
        tokens = as_rows(hidden_states)
        normed = self._ops.group_norm(tokens, attn.group_norm, silu=False)
        query, key, value = attn.to_q(normed), attn.to_k(normed), attn.to_v(normed)
        if VAE_ATTENTION in self._ops.names:
            pictures = zip(query.split(1), key.split(1), value.split(1), strict=True)
            mixed = torch.cat([attend_by_products(*picture) for picture in pictures])
        else:
            mixed = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        out = attn.to_out[0](mixed).add_(tokens) / attn.rescale_output_factor
        return as_picture(out, hidden_states.shape[-2])


def attend_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of [N, L, d], with the scores in memory."""
    empty = query.new_empty(len(query), query.shape[1], key.shape[1])
    scores = torch.baddbmm(empty, query, key.transpose(1, 2), beta=0, alpha=query.shape[-1] ** -0.5)
    return scores.softmax(-1) @ value


def use_kernels(network: nn.Module, ops: BlockOps) -> None:
    """Let what is no block of its own work on channels-last rows too, in place: the last norm, and the mid attention.

    State-dict keys stay.
    """
    for layer in list(network.modules()):
        norm = getattr(layer, "conv_norm_out", None)
        if type(norm) is nn.GroupNorm and type(getattr(layer, "conv_act", None)) is nn.SiLU:
            norm.__class__ = NormSilu
            cast(NormSilu, norm).ops = ops
            cast(Any, layer).conv_act = nn.Identity()
        elif _attends_alone(layer):
            cast(Any, layer).set_processor(MatrixAttention(ops))


def _attends_alone(layer: nn.Module) -> bool:
    """Whether it is an autoencoder's attention of one head, not yet rewritten."""
    if not isinstance(layer, Attention) or not layer.residual_connection or layer.heads != 1:
        return False
    return layer.group_norm is not None and "NoAttention" not in type(layer.processor).__name__

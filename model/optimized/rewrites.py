"""Exact rewrites: the same function and the same state-dict keys, fewer operations.

Each is applied in place to a loaded network and changes its output by float rounding only (tests hold that):

- `temporal_convolutions`: a Conv3d with kernel (3, 1, 1) is a Conv2d with kernel (3, 1) on [B, C, T, H*W]; the
  difference is exactly zero, and on a CPU the Conv2d is several times faster (and its bfloat16 weight gradient right).
- `fold_one_token_attention`: with a context of ONE token, softmax over it is 1, so cross-attention equals
  to_out(to_v(context)), whatever the query: half of a denoiser's attentions vanish. Image-to-video only.
- `skip_zero_branches`: a residual branch whose last layer is all zeros adds nothing, so it is not computed (the mini
  autoencoder's encoder is trained so).
- `fold_blends`: with no still pictures in a batch, an AlphaBlender's weight is one constant, so neither the indicator
  nor the float32 numbers it mixes into half precision are needed (strongly typed compilers refuse the mixture).
- `PhaseUpsample2D`: nearest upsampling and its 3 x 3 convolution are four phase convolutions of the small picture, on a
  CPU. Where every pixel stands twice along each axis, a 3 x 3 convolution meets each small pixel once or twice; adding
  up the weights that meet the same pixel leaves a 2 x 2 convolution, one for each of the four phases that an output
  pixel can have within its small one: 16 products instead of 36. Along one axis, with small pixels s and weights w:
  output 2i is w0 s[i-1] + (w1 + w2) s[i], and output 2i + 1 is (w0 + w1) s[i] + w2 s[i+1].

Legend: B rows, C channels, T frames, H, W size at the layer (of upsampling: before it doubles); N tokens or pictures,
D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import AlphaBlender, ResnetBlock2D, TemporalResnetBlock
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class TemporalConv(nn.Conv3d):
    """A Conv3d with kernel (3, 1, 1), stride 1, padding (1, 0, 0), computed as a Conv2d."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [B, C, T, H, W] over T."""
        flat = input.flatten(3)
        mixed = F.conv2d(flat, self.weight.squeeze(-1), self.bias, padding=(1, 0))
        return mixed.reshape(*mixed.shape[:3], *input.shape[3:])


def temporal_convolutions(network: nn.Module) -> int:
    """Turn every Conv3d(3, 1, 1) of the network into a TemporalConv; returns how many."""
    count = 0
    for layer in network.modules():
        if type(layer) is nn.Conv3d and layer.kernel_size == (3, 1, 1) and layer.padding == (1, 0, 0):
            layer.__class__ = TemporalConv
            count += 1
    return count


class OneTokenAttention:
    """diffusers attention processor for cross-attention over a context of exactly one token."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """to_out(to_v(context)), [B, 1, D] expanded to the queries' [B, N, D]."""
        assert encoder_hidden_states is not None and encoder_hidden_states.shape[1] == 1
        assert attention_mask is None and not attn.residual_connection
        value = attn.to_out[0](attn.to_v(encoder_hidden_states)) / attn.rescale_output_factor
        return cast(Tensor, value.expand(-1, hidden_states.shape[1], -1))


def fold_one_token_attention(network: nn.Module) -> int:
    """Give every cross-attention (`attn2`) of a one-token denoiser the folded form; returns how many."""
    count = 0
    for name, layer in network.named_modules():
        if name.endswith("attn2") and isinstance(layer, Attention):
            layer.set_processor(OneTokenAttention())
            count += 1
    return count


def skip_zero_branches(network: nn.Module) -> int:
    """Do not compute residual branches and attentions that end in zeros; returns how many.

    For networks that train no more.
    """
    count = 0
    for block in network.modules():
        if isinstance(block, ResnetBlock2D | TemporalResnetBlock):
            if not _ends_in_zeros(block.conv2):
                continue
            block.__dict__["forward"] = without_branch(block)
            count += 1
        elif isinstance(block, Attention) and block.residual_connection and _ends_in_zeros(block.to_out[0]):
            block.set_processor(NoAttention())
            count += 1
    return count


def _ends_in_zeros(layer: nn.Module) -> bool:
    return not any(bool(p.any()) for p in layer.parameters())


class NoAttention:
    """diffusers attention processor for a residual attention whose output layer is zero: its input."""

    def __call__(self, attn: Attention, hidden_states: Tensor, temb: Tensor | None = None, **_: object) -> Tensor:
        """The input, as the residual connection passes it on."""
        del temb  # an autoencoder has none
        return cast(Tensor, hidden_states / attn.rescale_output_factor)


def without_branch(block: nn.Module) -> Callable[..., Tensor]:
    """The forward function of a residual block whose branch adds nothing."""
    shortcut = cast("nn.Module | None", block.conv_shortcut)
    scale = float(getattr(block, "output_scale_factor", 1.0))

    def forward(hidden: Tensor, temb: Tensor | None = None) -> Tensor:
        del temb  # time embeddings reach a block only through its branch
        through = hidden if shortcut is None else cast(Tensor, shortcut(hidden))
        return through if scale == 1.0 else through / scale

    return forward


def fold_blends(network: nn.Module) -> int:
    """Make every AlphaBlender's weight the constant it is for video; returns how many.

    For networks that train no more, and whose every call is video (image_only_indicator all zero, as diffusers' own
    forward functions have it).
    """
    count = 0
    for layer in network.modules():
        if isinstance(layer, AlphaBlender):
            layer.__dict__["forward"] = constant_blend(layer)
            count += 1
    return count


def blend_weight(blender: nn.Module, to: torch.dtype | Tensor | None = None) -> Tensor:
    """An AlphaBlender's weight over video: `mix_factor`, or its sigmoid where it is learned.

    Args:
        to: the dtype or tensor whose kind `mix_factor` is converted to first; as it is where left out.
    """
    mix = cast(Tensor, blender.mix_factor)
    mix = mix if to is None else mix.to(to)
    return mix if blender.merge_strategy == "fixed" else torch.sigmoid(mix)


def constant_blend(blender: nn.Module) -> Callable[..., Tensor]:
    """The forward function of an AlphaBlender over video: spatial weight sigmoid(mix_factor), or 1 less it."""
    weight = float(blend_weight(blender).detach())
    spatial = 1 - weight if blender.switch_spatial_to_temporal_mix else weight

    def forward(x_spatial: Tensor, x_temporal: Tensor, image_only_indicator: Tensor | None = None) -> Tensor:
        del image_only_indicator  # all zero
        return spatial * x_spatial + (1 - spatial) * x_temporal

    return forward


def rewrite_exactly(network: nn.Module, *, context_tokens: int | None = None) -> nn.Module:
    """Apply every exact rewrite that holds for the network; returns it.

    Args:
        context_tokens: length of the cross-attention context; 1 allows the fold.
    """
    temporal_convolutions(network)
    if not network.training:
        skip_zero_branches(network)
    if context_tokens == 1:
        fold_one_token_attention(network)
    return network


@torch.no_grad()
def relative_difference(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference over the largest magnitude: what the equality tests bound."""
    return float((first - second).abs().max() / second.abs().max().clamp_min(1e-12))


class PhaseUpsample2D(Upsample2D):  # type: ignore[misc]
    """Nearest doubling and its 3 x 3 convolution, as four 2 x 2 convolutions where that was found to be faster."""

    def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """[N, C, H, W] to [N, C', 2H, 2W], or to the size asked for."""
        if output_size is not None or hidden_states.device.type != "cpu" or torch.compiler.is_compiling():
            return cast(Tensor, super().forward(hidden_states, output_size, *args, **kwargs))
        return upsample_nearest_conv(hidden_states, cast(Tensor, self.phases), cast("Tensor | None", self.conv.bias))


def can_use_phases(layer: nn.Module) -> bool:
    """Whether the layer doubles by nearest neighbours and convolves with a padded 3 x 3, in float32."""
    if type(layer) is not Upsample2D:
        return False
    kind: Any = layer
    if kind.use_conv_transpose or not kind.interpolate or kind.norm is not None or type(kind.conv) is not nn.Conv2d:
        return False
    conv: Any = kind.conv
    padded = (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)
    return padded and conv.weight.dtype == torch.float32


def phases(weight: Float[Tensor, "D C 3 3"]) -> Float[Tensor, "4*D C 2 2"]:
    """The four 2 x 2 weights of a 3 x 3 one: outputs at even and odd rows, and within those at even and odd columns."""
    return torch.cat([both for rows in _halves(weight, 2) for both in _halves(rows, 3)])


def _halves(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Along an axis, the two weights that even outputs meet, and those that odd ones meet."""
    first, middle, last = weight.split(1, axis)
    return torch.cat([first, middle + last], axis), torch.cat([first + middle, last], axis)


def upsample_nearest_conv(
    pictures: Float[Tensor, "N C H W"], weights: Float[Tensor, "E C 2 2"], bias: Float[Tensor, " D"] | None
) -> Float[Tensor, "N E//4 2*H 2*W"]:
    """The convolution of the doubled pictures; in channels-last layout.

    Args:
        weights: as `phases` gives them, E = 4 D.
    """
    count, _, height, width = pictures.shape
    channels = weights.shape[0] // 4
    # One output more than pixels along each axis: even positions read the first H, odd ones the last.
    mixed = F.conv2d(pictures, weights, None if bias is None else bias.repeat(4), padding=1)
    large = torch.empty_like(
        mixed.new_empty(()).expand(count, channels, 2 * height, 2 * width), memory_format=torch.channels_last
    )
    for phase, part in enumerate(mixed.split(channels, 1)):
        row, column = divmod(phase, 2)
        large[:, :, row::2, column::2] = part[:, :, row : row + height, column : column + width]
    return large

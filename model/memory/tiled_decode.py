"""Spatial tiling of the temporal decoder, exact: strips of rows on the device, whole layers in the host's memory.

Tiles that are decoded each for itself and blended show where they meet, since GroupNorm takes its statistics from
what it sees. Here each layer is finished over all strips before the next one begins: statistics are those of the
whole picture, a 3 x 3 convolution reads one row of its neighbours, layers over time read none. So no seam is there to
be blended; what differs from decoding at once is the order in which numbers are added up.

The first stage (a quarter of the area or less) is computed at once; from the first upsampling block on, a layer's
input and output lie in the host's memory and a strip of them on the device. Memory then hardly depends on the size of
the picture, and time grows by the copies.

Legend: t frames of a chunk, C channels, G groups; H, W size at the layer; rows of a strip are its height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 64
"""Height of a strip. Even, so that strips of a doubled picture begin at whole rows of the small one."""

Normalise = Callable[[Tensor], Tensor]
Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


def enable_tiled_decoding(vae: AutoencoderKLTemporalDecoder, rows: int = ROWS) -> None:
    """Let the autoencoder decode in strips from now on, in place."""
    vae.decoder.forward = partial(decode_in_strips, vae.decoder, rows=rows)


def host_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU."""
    return torch.empty(shape, dtype=dtype)


def decode_in_strips(
    decoder: Any,
    sample: Tensor,
    image_only_indicator: Tensor,
    num_frames: int = 1,
    *,
    rows: int = ROWS,
    allocate: Allocate = host_memory,
) -> Tensor:
    """What diffusers' TemporalDecoder.forward gives, [t, 3, H, W] on the sample's device.

    Args:
        sample: [t, C, h, w], the frames of one clip.
        image_only_indicator: [1, t], all zero.
        rows: height of a strip.
        allocate: makes the tensors that hold whole layers.
    """
    strips = _Strips(sample.device, rows, allocate)
    x = decoder.mid_block(decoder.conv_in(sample), image_only_indicator=image_only_indicator)
    x = strips.stored(x.to(next(decoder.up_blocks.parameters()).dtype))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = strips.over_time(resnet, strips.in_space(resnet.spatial_res_block, x))
        for upsampler in block.upsamplers or ():
            x = strips.doubled(upsampler.conv, x)
    return strips.pictures(decoder, x, num_frames)


class _Strips:
    """Layers over strips of rows.

    Args:
        device: where a strip is computed.
    """

    def __init__(self, device: torch.device, rows: int, allocate: Allocate) -> None:
        self._device = device
        self._rows = rows
        self._allocate = allocate

    def stored(self, x: Tensor) -> Tensor:
        """A copy that does not take the device's memory."""
        return self._allocate(tuple(x.shape), x.dtype).copy_(x)

    def in_space(self, block: Any, x: Tensor) -> Tensor:
        """A ResnetBlock2D without embedding, [t, C, H, W] to [t, C', H, W]."""
        hidden = self._convolved(block.conv1, self._norm(block.norm1, x), x)
        norm = self._norm(block.norm2, hidden)
        result = self._allocate(tuple(hidden.shape), hidden.dtype)
        for first, last in self._spans(x.shape[2]):
            own = self._load(x, first, last)
            through = own if block.conv_shortcut is None else block.conv_shortcut(own)
            branch = self._with_neighbours(block.conv2, norm, hidden, first, last)
            result[:, :, first:last].copy_(branch.add_(through))
        return result

    def over_time(self, layer: Any, x: Tensor) -> Tensor:
        """The TemporalResnetBlock of a SpatioTemporalResBlock, blended into x, in place."""
        block, share = layer.temporal_res_block, _temporal_share(layer.time_mixer)
        norm = self._norm(block.norm1, x, over_time=True)
        hidden = self._allocate(tuple(x.shape), x.dtype)
        for first, last in self._spans(x.shape[2]):
            hidden[:, :, first:last].copy_(_over_time(block.conv1, norm(self._load(x, first, last))))
        norm = self._norm(block.norm2, hidden, over_time=True)
        for first, last in self._spans(x.shape[2]):
            branch = _over_time(block.conv2, norm(self._load(hidden, first, last)))
            x[:, :, first:last].copy_(self._load(x, first, last).add_(branch, alpha=share))
        return x

    def doubled(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Nearest upsampling and a 3 x 3 convolution: [t, C, H, W] to [t, C, 2H, 2W]."""
        frames, _, height, width = x.shape
        result = self._allocate((frames, conv.out_channels, 2 * height, 2 * width), x.dtype)
        for first, last in self._spans(2 * height):
            above, below = min(1, first // 2), min(1, height - last // 2)
            small = self._load(x, first // 2 - above, last // 2 + below)
            large = F.interpolate(small, scale_factor=2.0, mode="nearest")
            # Of the doubled neighbour rows one is read; at the picture's edge there is a row of zeros.
            large = large[:, :, above : large.shape[2] - below]
            large = F.pad(large, (0, 0, 1 - above, 1 - below))
            result[:, :, first:last].copy_(F.conv2d(large, conv.weight, conv.bias, padding=(0, 1)))
        return result

    def pictures(self, decoder: Any, x: Tensor, num_frames: int) -> Tensor:
        """The last normalisation and convolutions, on the device."""
        norm = self._norm(decoder.conv_norm_out, x)
        made = []
        for first, last in self._spans(x.shape[2]):
            strip = self._with_neighbours(decoder.conv_out, norm, x, first, last)
            made.append(_over_time(decoder.time_conv_out, strip[:num_frames]))
        return torch.cat(made, 2)

    def _convolved(self, conv: nn.Conv2d, norm: Normalise, x: Tensor) -> Tensor:
        result = self._allocate((x.shape[0], conv.out_channels, *x.shape[2:]), x.dtype)
        for first, last in self._spans(x.shape[2]):
            result[:, :, first:last].copy_(self._with_neighbours(conv, norm, x, first, last))
        return result

    def _with_neighbours(self, conv: nn.Conv2d, norm: Normalise, x: Tensor, first: int, last: int) -> Tensor:
        """A 3 x 3 convolution of what `norm` gives, for the rows `first` to `last`."""
        above, below = min(1, first), min(1, x.shape[2] - last)
        strip = norm(self._load(x, first - above, last + below))
        strip = F.pad(strip, (0, 0, 1 - above, 1 - below))
        return F.conv2d(strip, conv.weight, conv.bias, padding=(0, 1))

    def _norm(self, norm: nn.GroupNorm, x: Tensor, *, over_time: bool = False) -> Normalise:
        """SiLU of a GroupNorm with the statistics of all of x: of each frame, or of all frames together."""
        frames, channels = x.shape[:2]
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for first, last in self._spans(x.shape[2]):
            strip = self._load(x, first, last).float().view(frames, norm.num_groups, -1)
            dims = (0, 2) if over_time else (2,)
            variance, own = torch.var_mean(strip, dims, correction=0)
            numbers = strip[0, 0].numel() * (frames if over_time else 1)
            own, variance = own.double(), variance.double()
            if not count:
                count, mean, squares = numbers, own, variance * numbers
                continue
            apart, total = own - mean, count + numbers  # Chan et al. 1979: statistics of a union
            mean = mean + apart * (numbers / total)
            squares = squares + variance * numbers + apart**2 * (count * numbers / total)
            count = total
        scale = (squares / count + norm.eps).rsqrt().repeat_interleave(channels // norm.num_groups, -1).float()
        shift = -mean.repeat_interleave(channels // norm.num_groups, -1).float() * scale
        weight, bias = norm.weight.float(), norm.bias.float()
        scale, shift = scale * weight, shift * weight + bias
        if not over_time:
            scale, shift = scale[..., None, None], shift[..., None, None]
        else:
            scale, shift = scale[None, :, None, None], shift[None, :, None, None]

        def normalise(strip: Tensor) -> Tensor:
            return F.silu((strip.float().mul_(scale).add_(shift)).to(strip.dtype), inplace=True)

        return normalise

    def _spans(self, height: int) -> Iterator[tuple[int, int]]:
        for first in range(0, height, self._rows):
            yield first, min(height, first + self._rows)

    def _load(self, x: Tensor, first: int, last: int) -> Tensor:
        return x[:, :, first:last].to(self._device, copy=True)


def _over_time(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A Conv3d with kernel (3, 1, 1) over the frames of [t, C, H, W]."""
    tokens = x.permute(1, 0, 2, 3).flatten(2)[None]  # [1, C, t, N]
    mixed: Tensor = F.conv2d(tokens, conv.weight.squeeze(-1), conv.bias, padding=(1, 0))
    return cast(Tensor, mixed[0].unflatten(-1, tuple(x.shape[2:]))).permute(1, 0, 2, 3)


def _temporal_share(mixer: Any) -> float:
    """How much of the temporal branch a blend over video takes (diffusers' AlphaBlender)."""
    mix = mixer.mix_factor.detach().float()
    if mix.is_meta:
        return 0.5
    weight = mix if mixer.merge_strategy == "fixed" else mix.sigmoid()
    return float(weight if mixer.switch_spatial_to_temporal_mix else 1 - weight)

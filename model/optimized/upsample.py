"""Nearest upsampling and its convolution as four phase convolutions of the small picture, on a CPU: the same sums.

Where every pixel stands twice along each axis, a 3 x 3 convolution meets each small pixel once or twice; adding up the
weights that meet the same pixel leaves a 2 x 2 convolution of the small picture, one for each of the four phases that
an output pixel can have within its small one. That is 16 products instead of 36, and equal but for rounding.

Along one axis, with small pixels s and weights w: output 2i is w0 s[i-1] + (w1 + w2) s[i], and output 2i + 1 is
(w0 + w1) s[i] + w2 s[i+1].

Legend: N pictures, C channels, H, W size before doubling.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


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

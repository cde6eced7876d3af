"""What the fused blocks compute on a GPU, each operation as a kernel of ours or as torch's own operations.

Which of the two is chosen by name, one by one; `names` are those that run as kernels. Both forms of an operation are
the same function, and may differ by rounding only.

Legend: N samples, L rows of a sample, C channels, E rows of what is added; B clips, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import InvalidRequest
from model.optimized.attention import Attend
from model.optimized.kernels import library

GROUP_NORM = "group-norm"
LAYER_NORM = "layer-norm"
GEGLU = "geglu"
BLEND = "blend"
TEMPORAL_ATTENTION = "temporal-attention"
VAE_ATTENTION = "vae-attention"
NAMES = (GROUP_NORM, LAYER_NORM, GEGLU, BLEND, TEMPORAL_ATTENTION, VAE_ATTENTION)
"""Of the kernels; `vae-attention` is matrix products in torch, the others are Triton's."""
MAX_FRAMES = 64
"""Of a clip for the temporal attention kernel, which holds a pixel's scores; longer clips take torch's."""


class BlockOps:
    """The operations of a network's fused blocks.

    Args:
        names: of the kernels that are used; the rest is torch's.

    Raises:
        InvalidRequest: a name of none.
    """

    def __init__(self, names: Iterable[str] = NAMES) -> None:
        self.names = frozenset(names)
        unknown = sorted(self.names.difference(NAMES))
        if unknown:
            raise InvalidRequest(f"no kernel is called {unknown[0]!r}; there are: {', '.join(NAMES)}", param="kernels")

    def group_norm(
        self, x: Tensor, norm: nn.GroupNorm, *, silu: bool, extra: Tensor | None = None, span: int = 1
    ) -> Tensor:
        """GroupNorm of x + extra, [N, L, C], and SiLU; extra [E, C] has a row for each `span` rows."""
        if GROUP_NORM in self.names:
            return cast(
                Tensor, library.group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu, extra, span)
            )
        if extra is not None:
            x = (x.view(len(extra), span, -1) + extra[:, None]).view(x.shape)
        out = F.group_norm(x.transpose(1, 2), norm.num_groups, norm.weight, norm.bias, norm.eps)
        return (F.silu(out, inplace=True) if silu else out).transpose(1, 2)

    def add_layer_norm(
        self,
        x: Tensor,
        y: Tensor,
        norm: nn.LayerNorm,
        *,
        extra: Tensor | None = None,
        span: int = 1,
        store_extra: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """x + y + extra and its LayerNorm, of [..., C]; the sum is without extra where not `store_extra`.

        Args:
            y: may be written over.
            extra: [E, C]; its row (i // span) % E is added to row i of the flattened x.
        """
        if LAYER_NORM in self.names:
            flat = (x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1]))
            added, out = library.add_layer_norm(*flat, norm.weight, norm.bias, norm.eps, extra, span, store_extra)
            return added.view(x.shape), out.view(x.shape)
        added = y.add_(x)
        if extra is None:
            return added, cast(Tensor, norm(added))
        parts = added.view(-1, len(extra), span, x.shape[-1])
        with_extra = (parts.add_(extra[:, None]) if store_extra else parts + extra[:, None]).view(x.shape)
        return added, cast(Tensor, norm(with_extra))

    def geglu(self, x: Tensor) -> Tensor:
        """The first half of the last axis times GELU of the second."""
        if GEGLU in self.names:
            return cast(Tensor, library.geglu(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1))
        wide, gate = x.chunk(2, -1)
        return F.gelu(gate).mul_(wide)

    def add_lerp(self, start: Tensor, x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        """From `start` a share of the way to x + y; y may be written over."""
        if BLEND in self.names:
            return cast(Tensor, library.add_lerp(start, x, y, share))
        return torch.lerp(start, y.add_(x), share)

    def temporal_attention(self, projected: Tensor, heads: int, attend: Attend) -> Tensor:
        """Attention over T, from the stacked projection [B, T, N, 3C] to [B, T, N, C]."""
        if TEMPORAL_ATTENTION in self.names and projected.shape[1] <= MAX_FRAMES:
            return cast(Tensor, library.temporal_attention(projected, heads))
        over_time = projected.transpose(1, 2)
        parts = (part.unflatten(-1, (heads, -1)).flatten(0, 1).transpose(1, 2) for part in over_time.chunk(3, -1))
        mixed = attend(*parts).transpose(1, 2).reshape(*over_time.shape[:-1], -1)
        return mixed.transpose(1, 2)

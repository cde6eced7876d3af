"""The operations of torch.library's namespace `stillmotion`: schemas, fake forms, and functions that call them.

An implementation is imported when it is first run, so that this file needs no Triton. On CUDA tensors it launches its
Triton kernels; on CPU tensors the same, which works through Triton's interpreter only (TRITON_INTERPRET=1): that is
how the tests hold them to float64. Inference only: they have no gradient.

Legend: N samples, L rows of a sample, C channels, E rows of what is added; B clips, T frames.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

NAMESPACE = "stillmotion"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_PACKAGE = __name__.rpartition(".")[0]


def _define(schema: str, module: str, fake: Any) -> None:
    """An operation whose implementation is the function of its name in a module of this package."""
    name = schema.partition("(")[0]

    def launch(*args: Any) -> Any:
        return getattr(import_module(f"{_PACKAGE}.{module}"), name)(*args)

    _LIBRARY.define(schema)
    for key in ("CUDA", "CPU"):
        _LIBRARY.impl(name, launch, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)


_define(
    "group_norm(Tensor x, Tensor weight, Tensor bias, int groups, float eps, bool silu, Tensor? extra, SymInt span)"
    " -> Tensor",
    "triton_norm",
    lambda x, *_: torch.empty_like(x),
)
_define(
    "add_layer_norm(Tensor x, Tensor y, Tensor weight, Tensor bias, float eps, Tensor? extra, SymInt span,"
    " bool store_extra) -> (Tensor, Tensor)",
    "triton_norm",
    lambda x, *_: (torch.empty_like(x), torch.empty_like(x)),
)
_define("geglu(Tensor x) -> Tensor", "triton_pointwise", lambda x: x.new_empty(x.shape[0], x.shape[1] // 2))
_define(
    "add_lerp(Tensor start, Tensor x, Tensor y, Tensor share) -> Tensor",
    "triton_pointwise",
    lambda start, *_: torch.empty_like(start),
)
_define(
    "temporal_attention(Tensor projected, int heads) -> Tensor",
    "triton_attention",
    lambda projected, heads: projected.new_empty(*projected.shape[:3], projected.shape[3] // 3),
)
_OPS: Any = getattr(torch.ops, NAMESPACE)


@no_type_check  # at run time: a check of shapes cannot be traced
def group_norm(
    x: Float[Tensor, "N L C"],
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    groups: int,
    eps: float,
    silu: bool = False,
    extra: Float[Tensor, "E C"] | None = None,
    span: int = 1,
) -> Float[Tensor, "N L C"]:
    """GroupNorm over the rows and each group's channels of x + extra, then SiLU.

    Args:
        extra: added to x first, its row i to the rows [i * span, (i + 1) * span) of all samples' rows in turn.
    """
    return cast(Tensor, _OPS.group_norm(x.contiguous(), weight, bias, groups, eps, silu, extra, span))


@no_type_check  # at run time: a check of shapes cannot be traced
def add_layer_norm(
    x: Float[Tensor, "L C"],
    y: Float[Tensor, "L C"],
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    eps: float,
    extra: Float[Tensor, "E C"] | None = None,
    span: int = 1,
    store_extra: bool = True,
) -> tuple[Float[Tensor, "L C"], Float[Tensor, "L C"]]:
    """The sum x + y (+ extra where `store_extra`), and the LayerNorm over channels of x + y + extra.

    Args:
        extra: its row (i // span) % E is added to row i.
    """
    both = _OPS.add_layer_norm(x.contiguous(), y.contiguous(), weight, bias, eps, extra, span, store_extra)
    return cast("tuple[Tensor, Tensor]", both)


@no_type_check  # at run time: a check of shapes cannot be traced
def geglu(x: Float[Tensor, "L D"]) -> Float[Tensor, "L C"]:
    """The first half of each row times GELU (with erf) of the second: D = 2 C."""
    return cast(Tensor, _OPS.geglu(x.contiguous()))


@no_type_check  # at run time: a check of shapes cannot be traced
def add_lerp(start: Tensor, x: Tensor, y: Tensor, share: Float[Tensor, ""]) -> Tensor:
    """From `start` a share of the way to x + y, all of one shape."""
    return cast(Tensor, _OPS.add_lerp(start.contiguous(), x.contiguous(), y.contiguous(), share))


@no_type_check  # at run time: a check of shapes cannot be traced
def temporal_attention(projected: Float[Tensor, "B T L D"], heads: int) -> Float[Tensor, "B T L C"]:
    """Self-attention over T of each of L pixels, from stacked queries, keys and values: D = 3 C."""
    return cast(Tensor, _OPS.temporal_attention(projected.contiguous(), heads))

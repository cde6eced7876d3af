"""Pictures and clips through one network: image_only_indicator, which diffusers' denoiser otherwise keeps at zero.

Where a frame is marked as a picture, every AlphaBlender takes its spatial path alone, so the temporal layers neither
change it nor learn from it (paper, section 3.1 and appendix D: joint training). diffusers' forward function makes an
indicator of zeros itself; here its blocks are handed another one, as an argument, so that recomputing a block for its
gradient (gradient checkpointing) sees the same.

Where every frame of a call is a picture, the temporal layers have no share in what comes out, and need not be computed
(`temporal=False`). They then get no gradient in place of one of zeros, which `fill_temporal_gradients` makes good:
weight decay and momentum heed the difference. Sharded processes must agree on who has gradients, and do not use it.

Legend: B rows, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from jaxtyping import Float
from torch import Tensor, nn

_INDICATOR: ContextVar[Tensor | None] = ContextVar("image_only_indicator", default=None)
_TEMPORAL: ContextVar[bool] = ContextVar("temporal_layers_computed", default=True)


def enable_image_rows(unet: UNetSpatioTemporalConditionModel) -> None:
    """Let the blocks of a denoiser heed `pictures_marked`."""
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        block.register_forward_pre_hook(_inject_indicator, with_kwargs=True)
    for layer in _temporal_layers(unet):
        _make_skippable(layer)


def fill_temporal_gradients(unet: UNetSpatioTemporalConditionModel) -> None:
    """Zeros for the gradients that temporal layers lack where no call computed them."""
    for layer in _temporal_layers(unet):
        for p in layer.parameters():
            if p.requires_grad and p.grad is None:
                p.grad = torch.zeros_like(p)


def _temporal_layers(unet: UNetSpatioTemporalConditionModel) -> Iterator[nn.Module]:
    for module in unet.modules():
        if isinstance(module, SpatioTemporalResBlock):
            yield module.temporal_res_block
        elif isinstance(module, TransformerSpatioTemporalModel):
            yield from module.temporal_transformer_blocks


def _make_skippable(layer: nn.Module) -> None:
    computed = layer.forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return cast(Tensor, computed(hidden, *args, **kwargs)) if _TEMPORAL.get() else hidden

    layer.forward = forward


@contextmanager
def image_rows(indicator: Float[Tensor, "B T"] | None, temporal: bool = True) -> Iterator[None]:
    """Within the block, in this thread, the frames marked 1 are pictures; None: all frames belong to clips.

    Args:
        temporal: whether the temporal layers are computed; they must be unless every frame is a picture.
    """
    assert temporal or (indicator is not None and bool(indicator.all())), "clips need the temporal layers"
    tokens = _INDICATOR.set(indicator), _TEMPORAL.set(temporal)
    try:
        yield
    finally:
        _INDICATOR.reset(tokens[0])
        _TEMPORAL.reset(tokens[1])


def _inject_indicator(
    _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    marked = _INDICATOR.get()
    if marked is not None:
        kwargs = kwargs | {"image_only_indicator": marked.to(kwargs["image_only_indicator"])}
    return args, kwargs

"""Pictures and clips through one network: image_only_indicator, which diffusers' denoiser otherwise keeps at zero.

Where a frame is marked as a picture, every AlphaBlender takes its spatial path alone, so the temporal layers neither
change it nor learn from it (paper, section 3.1 and appendix D: joint training). diffusers' forward function makes an
indicator of zeros itself; here its blocks are handed another one, as an argument, so that recomputing a block for its
gradient (gradient checkpointing) sees the same.

Legend: B rows, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor, nn

_INDICATOR: ContextVar[Tensor | None] = ContextVar("image_only_indicator", default=None)


def take_pictures(unet: UNetSpatioTemporalConditionModel) -> None:
    """Let the blocks of a denoiser heed `pictures_marked`."""
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        block.register_forward_pre_hook(_heed, with_kwargs=True)


@contextmanager
def pictures_marked(indicator: Float[Tensor, "B T"] | None) -> Iterator[None]:
    """Within the block, in this thread, the frames marked 1 are pictures; None: all frames belong to clips."""
    token = _INDICATOR.set(indicator)
    try:
        yield
    finally:
        _INDICATOR.reset(token)


def _heed(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    marked = _INDICATOR.get()
    if marked is not None:
        kwargs = kwargs | {"image_only_indicator": marked.to(kwargs["image_only_indicator"])}
    return args, kwargs

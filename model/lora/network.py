"""The layers a LoRA is about: the four projections of the self-attention of every temporal transformer block.

The cross-attention of those blocks is left alone: over the one token that image-to-video is told, its queries and keys
do nothing (model.rewrites), and camera motion is in how frames attend to each other.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

BLOCKS = "temporal_transformer_blocks"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def temporal_projections(unet: Any) -> dict[str, nn.Linear]:
    """By name, as in a LoRA's file less its `unet.`; the same before and after model.fused and torch.compile."""
    found: dict[str, nn.Linear] = {}
    for name, block in cast(nn.Module, unet).named_modules():
        if name.split(".")[-2:-1] == [BLOCKS]:
            for projection in PROJECTIONS:
                found[f"{name}.attn1.{projection}"] = cast(nn.Linear, block.get_submodule(f"attn1.{projection}"))
    return found

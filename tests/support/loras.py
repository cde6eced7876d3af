"""LoRAs with drawn weights, strong enough to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.lora.catalog import LoraEntry, describe_lora
from model.lora.weights import Pair, temporal_projections, write_lora


def drawn_pairs(unet: Any, seed: int, rank: int = 4) -> dict[str, Pair]:
    """A and B of every layer."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, layer.in_features, generator=g) / layer.in_features**0.5,
            torch.randn(layer.out_features, rank, generator=g) / rank**0.5,
        )
        for name, layer in temporal_projections(unet).items()
    }


def drawn_lora(path: Path, unet: Any, seed: int, *, rank: int = 4, alpha: float = 6.0, base: str = "") -> LoraEntry:
    """A file of them, named as the path is."""
    pairs = drawn_pairs(unet, seed, rank)
    write_lora(path, pairs, name=path.stem, task="image-to-video", base=base, alpha=alpha)
    return describe_lora(path)

"""LoRAs with drawn weights, strong enough to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.lora.catalog import LoraEntry, describe_lora
from model.lora.weights import Pair, adaptable_layers, temporal_projections, write_lora


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


def kohya_lora(path: Path, unet: Any, seed: int, *, rank: int = 4, alpha: float = 6.0) -> tuple[LoraEntry, Path]:
    """A LoRA of every layer that can have one, under kohya's names; the same file under PEFT's lies beside it."""
    g = torch.Generator().manual_seed(seed)
    theirs: dict[str, torch.Tensor] = {}
    peft: dict[str, torch.Tensor] = {}
    for name, layer in adaptable_layers(unet).items():
        down = torch.randn(rank, layer.in_features, generator=g) / layer.in_features**0.5
        up = torch.randn(layer.out_features, rank, generator=g) / rank**0.5
        joined = "lora_unet_" + name.replace(".", "_")
        theirs |= {f"{joined}.lora_down.weight": down, f"{joined}.lora_up.weight": up}
        theirs[f"{joined}.alpha"] = torch.tensor(alpha)
        peft |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    beside = path.with_name(f"{path.stem}-peft.safetensors")
    save_file(theirs, path)
    save_file(peft, beside)
    return describe_lora(path), beside


def drawn_lora(path: Path, unet: Any, seed: int, *, rank: int = 4, alpha: float = 6.0, base: str = "") -> LoraEntry:
    """A file of them, named as the path is."""
    pairs = drawn_pairs(unet, seed, rank)
    write_lora(path, pairs, name=path.stem, task="image-to-video", base=base, alpha=alpha)
    return describe_lora(path)

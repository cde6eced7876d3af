"""LoRA weights: read from a file with every number checked, and written to one.

Those that are trained here adapt the four projections of the self-attention of every temporal transformer block. Their
cross-attention is left alone: over image-to-video's context of one token, its queries and keys do nothing
(model.optimized.rewrites), and camera motion is in how frames attend to each other. Files of other trainers may adapt
any linear layer of the transformer blocks.

Legend: r rank, I and O a layer's inputs and outputs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from model.errors import CheckpointError, StorageFull
from model.lora.catalog import ALPHA, LoraEntry, is_adaptable, split_key

BLOCKS = "temporal_transformer_blocks"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def temporal_projections(unet: Any) -> dict[str, nn.Linear]:
    """By name, as in a LoRA's file less its `unet.`; the same before and after fusing and torch.compile."""
    layers: dict[str, nn.Linear] = {}
    for name, block in cast(nn.Module, unet).named_modules():
        if name.split(".")[-2:-1] == [BLOCKS]:
            for projection in PROJECTIONS:
                layers[f"{name}.attn1.{projection}"] = cast(nn.Linear, block.get_submodule(f"attn1.{projection}"))
    return layers


def adaptable_layers(unet: Any) -> dict[str, nn.Linear]:
    """Every linear layer that a LoRA may adapt: those of the transformer blocks, over space and over time, by name.

    All of them are read anew at every call, fused (model.optimized.fused_blocks) or not.
    """
    return {
        name: layer
        for name, layer in cast(nn.Module, unet).named_modules()
        if isinstance(layer, nn.Linear) and is_adaptable(name)
    }


Pair = tuple[Float[Tensor, "r I"], Float[Tensor, "O r"]]
"""A and B of one layer."""


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA in memory.

    Args:
        pairs: of each layer that it changes, by the layer's name in the network; float32.
    """

    entry: LoraEntry
    pairs: Mapping[str, Pair]

    @property
    def scaling(self) -> float:
        """What the product of a pair is multiplied by at strength 1."""
        return self.entry.alpha / self.entry.rank

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(part.nbytes for pair in self.pairs.values() for part in pair)


def read_lora(entry: LoraEntry, unet: Any) -> Lora:
    """The LoRA's weights, on the network's device.

    Raises:
        CheckpointError: the file is not the one that was described, is of a network of another size, or holds numbers
            that are not finite.
    """
    label = f"the LoRA {entry.name!r} ({entry.path})"
    try:
        content = entry.path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:12] != entry.version:
            raise CheckpointError(f"{label} has changed since it was found; start again", code="bad_lora", param="lora")
        tensors = load(content)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{label} cannot be read: {error}", code="bad_lora", param="lora") from error
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part = split_key(key)
        assert part is not None  # describe_lora went through the keys of these very bytes
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{key} of {label} has numbers that are not finite", code="bad_lora", param="lora")
        if part[1] != ALPHA:  # which is the entry's
            halves.setdefault(part[0], {})[part[1]] = tensor.to(unet.device, torch.float32)
    layers = adaptable_layers(unet)
    for name, pair in halves.items():
        _check_size(label, name, pair, layers)
    return Lora(entry, {name: (pair["A"], pair["B"]) for name, pair in halves.items()})


def _check_size(label: str, name: str, pair: Mapping[str, Tensor], layers: Mapping[str, torch.nn.Linear]) -> None:
    """Refuse a LoRA of another network, by the layer that shows it."""
    layer = layers.get(name)
    if layer is None:
        raise CheckpointError(
            f"{label} is of another network: this one has no layer {name}", code="bad_lora", param="lora"
        )
    size, own = (layer.out_features, layer.in_features), (pair["B"].shape[0], pair["A"].shape[1])
    if size != own:
        raise CheckpointError(
            f"{label} is of a network of another size: {name} is {own[0]} x {own[1]} there and {size[0]} x {size[1]} "
            "here; offer it with the checkpoint it was trained on",
            code="bad_lora",
            param="lora",
        )


def write_lora(path: Path, pairs: Mapping[str, Pair], *, name: str, task: str, base: str, alpha: float) -> None:
    """Write a LoRA's file, whole or not at all.

    Args:
        base: NAME@VERSION of the checkpoint it was trained on.

    Raises:
        StorageFull: it cannot be written.
    """
    rank = next(iter(pairs.values()))[0].shape[0]
    tensors = {
        f"unet.{layer}.lora_{half}.weight": tensor.detach().to("cpu", torch.float32).contiguous()
        for layer, pair in pairs.items()
        for half, tensor in zip("AB", pair, strict=True)
    }
    metadata = {"format": "pt", "name": name, "task": task, "base": base}
    metadata |= {"rank": str(rank), "alpha": repr(float(alpha))}
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            stream.write(save(tensors, metadata=metadata))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageFull(f"{path} could not be written ({error}); make room and go on with --resume") from error
    partial.replace(path)

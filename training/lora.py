"""Training of a LoRA: adapters beside the projections of a frozen denoiser's temporal attention (model.lora.catalog).

Each layer becomes x -> W x + alpha / r * B A x, with A drawn as PEFT draws it and B zero, so that the network starts as
the base, bit for bit: what is added is a product of zeros.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.catalog import ModelEntry, describe
from model.checkpoint import Checkpoint, load
from model.errors import DataError
from model.lora.weights import Pair, temporal_projections, write_lora
from model.optimized.rewrites import rewrite_exactly
from model.presets import preset
from model.sources.source import find
from training.config import LoraConfig
from training.data.seeding import generator
from training.distributed import rank_and_size
from training.objectives.denoise import DenoiseObjective
from training.objectives.protocol import Decode, Examples

FILE = "lora.safetensors"
_BASE = "base.json"
_START = 3


class LoraLinear(nn.Module):
    """A frozen layer, and what trains beside it."""

    def __init__(self, plain: nn.Linear, rank: int, scaling: float) -> None:
        super().__init__()
        self.plain, self.scaling = plain, scaling
        with torch.device(plain.weight.device):
            self.lora_A = nn.Linear(plain.in_features, rank, bias=False)
            self.lora_B = nn.Linear(rank, plain.out_features, bias=False)

    def start(self, draw: torch.Generator) -> None:
        """A uniform in +-1 / sqrt(inputs), B zero."""
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=draw)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, and the adapter's on top."""
        return cast(Tensor, self.plain(x) + self.scaling * self.lora_B(self.lora_A(x)))


class Adapters(nn.Module):
    """The adapters of a network, in modules of the layers' own names: all that a run trains, saves and averages."""

    def __init__(self, layers: dict[str, LoraLinear]) -> None:
        super().__init__()
        self._names = tuple(layers)
        for name, layer in layers.items():
            module: nn.Module = self
            for part in name.split("."):
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.add_module("lora_A", layer.lora_A)
            module.add_module("lora_B", layer.lora_B)

    def pairs(self) -> dict[str, Pair]:
        """A and B of every layer, by its name."""
        parameters = dict(self.named_parameters())
        return {
            name: (parameters[f"{name}.lora_A.weight"], parameters[f"{name}.lora_B.weight"]) for name in self._names
        }


def adapt(unet: Any, rank: int, alpha: float, seed: int) -> Adapters:
    """Freeze a denoiser and put adapters beside its temporal projections, in place; returns them."""
    cast(nn.Module, unet).requires_grad_(False)
    layers: dict[str, LoraLinear] = {}
    for number, (name, plain) in enumerate(temporal_projections(unet).items()):
        layer = LoraLinear(plain, rank, alpha / rank)
        if not plain.weight.is_meta:
            layer.start(generator(seed, number, _START))
        parent, _, own = name.rpartition(".")
        unet.get_submodule(parent).add_module(own, layer)
        layers[name] = layer
    return Adapters(layers)


class LoraObjective(DenoiseObjective):
    """Denoising of cached latents, by adapters alone.

    Args:
        unet: the base's denoiser; it is frozen here and given adapters.
    """

    def __init__(self, config: LoraConfig, unet: Any, examples: Examples, decode: Decode | None = None) -> None:
        self.adapters = adapt(unet, config.rank, config.alpha, config.optim.seed)
        super().__init__(config, cast(nn.Module, unet), examples, decode)

    @property
    def module(self) -> nn.Module:
        """The adapters."""
        return self.adapters

    def enter(self, step: int) -> None:
        """They all train from the first iteration to the last."""


def base_entry(config: LoraConfig, out: Path) -> ModelEntry:
    """The checkpoint that a LoRA is for.

    Args:
        out: the folder of runs.

    Raises:
        CheckpointError: there is none of that name.
        DataError: it is of another task, size or clip length.
    """
    released = out / config.base / "checkpoint"
    entry = describe(released, config.base) if released.is_dir() else find(config.base)
    if entry.exported or entry.task.name != config.task:
        kind = "an export" if entry.exported else entry.task.name
        raise DataError(f"{config.base} is {kind}; camera LoRAs are trained on a checkpoint of {config.task}")
    if config.num_frames not in entry.num_frames:
        raise DataError(
            f"{config.base} makes {entry.num_frames[0]} frames; this recipe has clips of {config.num_frames}"
        )
    return entry


def load_base(config: LoraConfig, entry: ModelEntry) -> Checkpoint:
    """The base in float32, rewritten for training.

    Raises:
        CheckpointError: it does not load.
        DataError: it is of another size than the recipe.
    """
    base = load(entry)
    widths = tuple(base.unet.config["block_out_channels"])
    if widths != preset(config.preset).unet.channels:
        raise DataError(f"{config.base} is a network of widths {widths}, not of size {config.preset!r}: set preset too")
    rewrite_exactly(cast(nn.Module, base.unet), context_tokens=entry.task.context_tokens)
    rewrite_exactly(cast(nn.Module, base.vae))
    return base


def pin_base(folder: Path, entry: ModelEntry) -> None:
    """Write down which base a run is for; refuse to go on with another. Raises DataError."""
    path, pinned = folder / _BASE, f"{entry.name}@{entry.version}"
    began = (folder / "state.pt").exists() and path.exists()
    if began and (was := json.loads(path.read_text())["base"]) != pinned:
        raise DataError(f"{folder} is a run on {was}, and {entry.path} is {pinned}: start a new folder")
    if rank_and_size()[0] == 0:
        path.write_text(json.dumps({"base": pinned}) + "\n")


def release_lora(objective: LoraObjective, config: LoraConfig, entry: ModelEntry, folder: Path) -> Path:
    """Write the adapters as they now are into the run's folder. Raises StorageFull."""
    path = folder / FILE
    write_lora(
        path,
        objective.adapters.pairs(),
        name=config.name,
        task=config.task,
        base=f"{entry.name}@{entry.version}",
        alpha=config.alpha,
    )
    return path

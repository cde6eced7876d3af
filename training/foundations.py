"""Denoisers out of published weights, as what a run starts from.

- Stable Diffusion in diffusers' format: the spatial layers of a text-to-video one (model.adapters.stable_diffusion).
- A checkpoint folder, Stable Video Diffusion's or one of ours: a denoiser of the task that its folder tells.
- Stability's single file, svd or svd-xt: an image-to-video denoiser (model.adapters.sgm).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from model.adapters.sgm import read
from model.adapters.stable_diffusion import denoiser_from
from model.adapters.whole import class_of, load_whole
from model.catalog import describe
from model.checkpoint import pretrained
from model.conditioners import ImagePair, load_conditioners
from model.errors import DataError
from model.presets import PRESETS, Preset
from model.rewrites import temporal_convolutions
from model.tasks import TASKS, TaskSpec
from training.named import is_single_file


@dataclass(frozen=True, slots=True)
class Start:
    """A denoiser that another one begins as.

    Args:
        task: what it does.
        mask: [C], the learned embedding of a frame that is not given, where its task has one.
    """

    unet: UNetSpatioTemporalConditionModel
    task: TaskSpec
    mask: Tensor | None = None


def published_start(path: Path, size: Preset) -> Start:
    """The denoiser in published weights.

    Raises:
        DataError: it is of another size, or nothing that is known.
        CheckpointError: it is incomplete, or a weight has no place.
    """
    if is_single_file(path):
        networks, _ = read(path, size, "unet")
        return _ready(Start(networks.unet, TASKS["image-to-video"]))
    kind = class_of(path / "unet") if (path / "unet").is_dir() else "nothing"
    if kind == "UNet2DConditionModel":
        return _ready(Start(denoiser_from(path, size), TASKS["text-to-video"]))
    if kind == "UNetSpatioTemporalConditionModel":
        return _ready(_checkpoint(path, size))
    raise DataError(
        f"{path} holds {kind} that a denoiser could start from: name a run, a folder of Stable Diffusion or of Stable "
        "Video Diffusion in diffusers' format, or svd.safetensors"
    )


def _checkpoint(path: Path, size: Preset) -> Start:
    entry = describe(path)
    if entry.exported:
        raise DataError(f"{path} was exported, so it has no weights to start from; name the checkpoint it was made of")
    unet = load_whole(UNetSpatioTemporalConditionModel, entry.path / "unet")
    _refuse_other_size(path, unet.config, size)
    channels = int(unet.config["out_channels"])
    has = (int(unet.config["in_channels"]), int(unet.config["projection_class_embeddings_input_dim"]))
    if has != (entry.task.unet_in_channels(channels), entry.task.vector_size):
        raise DataError(
            f"{path} takes {has[0]} channels and a vector of {has[1]}, which are not those of {entry.task.name}"
        )
    if not entry.task.concat_masks:
        return Start(unet, entry.task)
    pair = cast(ImagePair, load_conditioners(entry.path, entry.task, pretrained("cpu", torch.float32)))
    return Start(unet, entry.task, pair.mask.clone())


def _refuse_other_size(path: Path, config: Any, size: Preset) -> None:
    own = _size(config)
    wanted = _size(size.unet.config(TASKS["image-to-video"], size.vae.latent_channels, size.num_frames))
    if own != wanted:
        named = [name for name, other in PRESETS.items() if own == _size_of(other)]
        remedy = f"it is of size {' or '.join(named)}" if named else f"it has {own}"
        raise DataError(f"{path} is no denoiser of size {size.name!r}: {remedy}; change it with --set preset=SIZE")


def _size_of(size: Preset) -> dict[str, Any]:
    return _size(size.unet.config(TASKS["image-to-video"], size.vae.latent_channels, size.num_frames))


def _size(config: Any) -> dict[str, Any]:
    """What of a denoiser's config its preset fixes, lists as tuples."""
    names = ("block_out_channels", "num_attention_heads", "layers_per_block", "cross_attention_dim", "out_channels")
    values = {name: config[name] for name in names}
    return {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in values.items()}


def _ready(start: Start) -> Start:
    """In float32 and trainable, in the form that trains fast."""
    network = cast(nn.Module, start.unet).float().train().requires_grad_(True)
    temporal_convolutions(network)
    return start

"""What network a run trains, and what weights it starts from: nothing, another run's averaged ones, or published ones.

A run of another task is given the inputs it lacks, with weights of zero (model.surgery.grow), or loses those its new
task has not, so that it computes what it did with them dropped (`narrow`). Another size is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from model.errors import DataError
from model.presets import preset
from model.rewrites import rewrite_exactly, temporal_convolutions
from model.surgery import SCALAR_WIDTH, grow
from model.tasks import TaskSpec, task
from model.unet import build_unet
from training.config import DenoiserConfig
from training.foundations import Start, published_start
from training.initialise import start_denoiser
from training.joint import take_pictures
from training.named import find, is_run
from training.runs import run_config, start_from

NEUTRAL: dict[str, float] = {"noise_aug_strength": 0.02, "elevation": 0.0}
"""What a scalar that the new task has not is taken to have been."""


class Denoiser(nn.Module):
    """A denoiser, and the learned embedding of a frame that is not given, where its task has one.

    Args:
        mask: [C], for frame interpolation.
    """

    def __init__(self, unet: UNetSpatioTemporalConditionModel, mask: Tensor) -> None:
        super().__init__()
        self.unet = unet
        self.mask = nn.Parameter(mask)


def unet_of(network: nn.Module) -> UNetSpatioTemporalConditionModel:
    """The UNet in what a run trains."""
    return cast(UNetSpatioTemporalConditionModel, network.unet if isinstance(network, Denoiser) else network)


def empty_network(values: dict[str, Any]) -> nn.Module:
    """A network that a run's weights fit, from the run's config; freshly initialised."""
    spec = task(values["task"])
    size = preset(values["preset"])
    unet = build_unet(size, spec, num_frames=values["num_frames"])
    temporal_convolutions(cast(nn.Module, unet))
    return Denoiser(unet, torch.zeros(size.vae.latent_channels)) if spec.concat_masks else cast(nn.Module, unet)


def build_network(config: DenoiserConfig, out: Path) -> nn.Module:
    """The network of a run, at its start.

    Args:
        out: the folder of runs that `config.init` lies in.

    Raises:
        DataError: what it starts from is not there, or of another size.
        CheckpointError: published weights that are incomplete, or of a task that cannot become this one.
    """
    torch.manual_seed(config.optim.seed)
    spec = task(config.task)
    mask: Tensor | None = None
    if config.init:
        path = find(config.init, out, "init")
        start = _from_run(config, path) if is_run(path) else published_start(path, preset(config.preset))
        unet, mask = become(start.unet, start.task, spec, config.num_frames), start.mask
    else:
        unet = build_unet(preset(config.preset), spec, num_frames=config.num_frames)
        if config.copying_start:
            start_denoiser(unet)
    rewrite_exactly(cast(nn.Module, unet), context_tokens=spec.context_tokens)
    take_pictures(unet)
    if not spec.concat_masks:
        return cast(nn.Module, unet)
    return Denoiser(unet, torch.zeros(int(unet.config["out_channels"])) if mask is None else mask)


def _from_run(config: DenoiserConfig, run: Path) -> Start:
    values = run_config(run)
    if "task" not in values or values["preset"] != config.preset:
        raise DataError(
            f"{run} is a run of size {values['preset']!r}, task {values.get('task', 'none')!r}; "
            f"{config.task} at size {config.preset!r} cannot start from it"
        )
    network = empty_network(values)
    start_from(network, run)
    mask = network.mask.detach().clone() if isinstance(network, Denoiser) else None
    return Start(unet_of(network), task(values["task"]), mask)


def become(
    unet: UNetSpatioTemporalConditionModel, was: TaskSpec, spec: TaskSpec, num_frames: int
) -> UNetSpatioTemporalConditionModel:
    """A denoiser of the task `was` as the start of one of `spec`, in place: narrowed first where it must be."""
    if was == spec:
        unet.register_to_config(num_frames=num_frames)
        return unet
    fewer = spec.concat_latents < was.concat_latents or spec.concat_masks < was.concat_masks
    if fewer or any(name not in spec.vector for name in was.vector):
        return narrow(unet, was, spec, num_frames)
    return grow(unet, was, spec, num_frames=num_frames)


@torch.no_grad()
def narrow(
    unet: UNetSpatioTemporalConditionModel, was: TaskSpec, becomes: TaskSpec, num_frames: int
) -> UNetSpatioTemporalConditionModel:
    """Take away the inputs that `becomes` has not, so that the rest computes what it did when they were dropped.

    Concatenated channels were zero for a dropped condition, so their weights may go. A scalar is fixed at its `NEUTRAL`
    value, whose share of the embedding goes into the bias.

    Raises:
        DataError: `becomes` has an input that `was` lacks.
    """
    channels = int(unet.config["out_channels"])
    if becomes.concat_latents or becomes.concat_masks or any(name not in was.vector for name in becomes.vector):
        raise DataError(f"a denoiser of {was.name} cannot become one of {becomes.name}: start from another run")
    conv = unet.conv_in
    conv.weight = nn.Parameter(conv.weight[:, :channels].clone())
    conv.in_channels = channels
    first = unet.add_embedding.linear_1
    columns = {name: first.weight[:, k * SCALAR_WIDTH : (k + 1) * SCALAR_WIDTH] for k, name in enumerate(was.vector)}
    for name in was.vector:
        if name not in becomes.vector:
            first.bias += columns[name] @ unet.add_time_proj(torch.tensor([NEUTRAL[name]]))[0]
    first.weight = nn.Parameter(torch.cat([columns[name] for name in becomes.vector], dim=1).clone())
    first.in_features = becomes.vector_size
    unet.register_to_config(
        in_channels=channels, projection_class_embeddings_input_dim=becomes.vector_size, num_frames=num_frames
    )
    return unet

"""The UNet: diffusers' UNetSpatioTemporalConditionModel, built from a preset and a task, or grown from another task's.

The class and its state-dict keys are diffusers' own, so published checkpoints load unchanged.

Growing (`grow_inputs`, UNet surgery): the inputs that the new task adds (TaskSpec) get weights of zero: input channels
of `conv_in` (C to 2C to 2C + 1), and columns of `add_embedding.linear_1` for scalars of the vector. So the grown
network's output does not depend on the new inputs until training changes them, and then both old and new learn.

Source: paper, section 4 and appendix D; the zero start is that of InstructPix2Pix (Brooks et al. 2023, section 3.2).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from model.errors import CheckpointError
from model.presets import Preset
from model.sources.architecture import SCALAR_WIDTH, check_inputs
from model.tasks import TaskSpec

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def grow_inputs(
    unet: UNetSpatioTemporalConditionModel, was: TaskSpec, becomes: TaskSpec, *, num_frames: int | None = None
) -> UNetSpatioTemporalConditionModel:
    """Give a denoiser of the task `was` the inputs of the task `becomes`, in place; returns it.

    Args:
        num_frames: the clip length it is made for from now on; as before when left out.

    Raises:
        CheckpointError: it is no denoiser of `was`, or `becomes` lacks an input that `was` has.
    """
    channels = int(unet.config["out_channels"])
    check_inputs(unet.config, was, "the network")
    lost = [name for name in was.vector if name not in becomes.vector]
    if lost or becomes.concat_latents < was.concat_latents or becomes.concat_masks < was.concat_masks:
        raise CheckpointError(
            f"{becomes.name} lacks inputs that {was.name} has; start from a network of a task with fewer inputs"
        )
    if was.concat_masks and becomes.concat_latents > was.concat_latents:
        raise CheckpointError(f"{was.name} has its mask where {becomes.name} has latents; they cannot be told apart")
    unet.conv_in = _wider_conv(unet.conv_in, becomes.unet_in_channels(channels))
    positions = [becomes.vector.index(name) for name in was.vector]
    unet.add_embedding.linear_1 = _wider_linear(unet.add_embedding.linear_1, positions, becomes.vector_size)
    unet.register_to_config(
        in_channels=becomes.unet_in_channels(channels),
        projection_class_embeddings_input_dim=becomes.vector_size,
        num_frames=num_frames or unet.config["num_frames"],
    )
    return unet


def _wider_conv(old: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The same convolution with further input channels, whose weights are zero."""
    weight = old.weight.new_zeros(old.out_channels, channels, *old.weight.shape[2:])
    weight[:, : old.in_channels] = old.weight.detach()
    new = nn.Conv2d(channels, old.out_channels, 3, padding=1, device="meta")
    return _with_weights(new, weight, old)


def _wider_linear(old: nn.Linear, positions: list[int], width: int) -> nn.Linear:
    """The same layer over a longer vector: its scalar i now stands at positions[i], those between have weight zero."""
    weight = old.weight.new_zeros(old.out_features, width)
    for scalar, position in enumerate(positions):
        columns = old.weight.detach()[:, scalar * SCALAR_WIDTH : (scalar + 1) * SCALAR_WIDTH]
        weight[:, position * SCALAR_WIDTH : (position + 1) * SCALAR_WIDTH] = columns
    new = nn.Linear(width, old.out_features, device="meta")
    return _with_weights(new, weight, old)


def _with_weights(new: Layer, weight: Tensor, old: nn.Conv2d | nn.Linear) -> Layer:
    """A layer with a grown weight and the old one's bias, trainable as the old one was."""
    new.weight = nn.Parameter(weight, requires_grad=old.weight.requires_grad)
    assert old.bias is not None
    new.bias = nn.Parameter(old.bias.detach().clone(), old.bias.requires_grad)
    return new.train(old.training)


def build_unet(
    preset: Preset, task: TaskSpec, *, device: torch.device | str = "cpu", num_frames: int | None = None
) -> UNetSpatioTemporalConditionModel:
    """A freshly initialised denoiser; on the meta device it takes no memory.

    Args:
        num_frames: the clip length it is made for; the preset's own when left out.
    """
    config = preset.unet.config(task, preset.vae.latent_channels, num_frames or preset.num_frames)
    with torch.device(device):
        return UNetSpatioTemporalConditionModel(**config)


def count_parameters(module: torch.nn.Module, *, trainable: bool = False) -> int:
    """How many numbers a network holds; only the trainable ones with `trainable`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)

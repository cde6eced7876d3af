"""Initial weights: none, another run's averaged ones, or published ones.

A run of another task is given the inputs it lacks, with weights of zero (model.unet.grow_inputs), or loses those its
new task has not, so that it computes what it did with them dropped (`drop_inputs`). Another size is refused by name.
Published weights are

- Stable Diffusion in diffusers' format: the spatial layers of a text-to-video one (model.importers.stable_diffusion);
- a checkpoint folder, Stable Video Diffusion's or one of ours: a denoiser of the task that its folder names;
- Stability's single file, svd or svd-xt: an image-to-video denoiser (model.importers.sgm).

A network that starts from nothing starts with residual branches at zero, and with offsets that keep normalisation from
losing a picture's mean:

- Every residual branch ends in a layer that starts at zero, so the network starts as a short stack of convolutions and
  its skip connections (as EDM's networks do; Karras et al. 2022, appendix F.2 follows Dhariwal and Nichol 2021).
- GroupNorm takes away the mean of a group of channels over the whole picture. With two channels a group, that mean is
  the picture's brightness or colour. Opposite constant offsets in neighbouring channels (anchors) dominate the group's
  statistics, so what the picture adds survives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from model.catalog import describe
from model.checkpoint import pretrained
from model.encoders import ImagePairEncoder, load_conditioners
from model.errors import DataError
from model.importers.sgm import read
from model.importers.stable_diffusion import denoiser_from
from model.optimized.rewrites import rewrite_exactly, temporal_convolutions
from model.presets import PRESETS, Preset, preset
from model.sources.architecture import SCALAR_WIDTH, check_inputs
from model.tasks import TASKS, TaskSpec, task
from model.unet import build_unet, grow_inputs
from model.weights import class_of, load_strict
from training.config import DenoiserConfig
from training.joint_image_video import enable_image_rows
from training.runs import is_run, is_single_file, resolve_source, run_config, start_from


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
    unet = load_strict(UNetSpatioTemporalConditionModel, entry.path / "unet")
    _refuse_other_size(path, unet.config, size)
    check_inputs(unet.config, entry.task, path)
    if not entry.task.concat_masks:
        return Start(unet, entry.task)
    pair = cast(ImagePairEncoder, load_conditioners(entry.path, entry.task, pretrained("cpu", torch.float32)))
    return Start(unet, entry.task, pair.mask.clone())


def _refuse_other_size(path: Path, config: Any, size: Preset) -> None:
    own = _size(config)
    expected = _size(size.unet.config(TASKS["image-to-video"], size.vae.latent_channels, size.num_frames))
    if own != expected:
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


ANCHOR = 2.0


def branch_ends(network: nn.Module) -> Iterable[nn.Module]:
    """The last layer of every residual branch."""
    for layer in network.modules():
        if isinstance(layer, ResnetBlock2D | TemporalResnetBlock):
            yield cast(nn.Module, layer.conv2)
        elif isinstance(layer, Attention):
            yield cast(nn.ModuleList, layer.to_out)[0]
        elif isinstance(layer, FeedForward):
            yield cast(nn.ModuleList, layer.net)[-1]
        elif isinstance(layer, TransformerSpatioTemporalModel):
            yield cast(nn.Module, layer.proj_out)


def zero_branches(network: nn.Module) -> None:
    """Let every residual branch start as nothing."""
    for layer in branch_ends(network):
        nn.init.zeros_(cast(Tensor, layer.weight))
        if layer.bias is not None:
            nn.init.zeros_(cast(Tensor, layer.bias))


@torch.no_grad()
def anchor(conv: nn.Conv2d) -> None:
    """Give neighbouring output channels of a convolution opposite constant offsets."""
    bias = cast(Tensor, conv.bias)
    bias.fill_(ANCHOR)
    bias[1::2] = -ANCHOR


@torch.no_grad()
def start_denoiser(unet: UNetSpatioTemporalConditionModel, copies: float = 0.5) -> None:
    """Zero the denoiser's branches, and let its outermost skip connection repeat the condition.

    A small denoiser with little time learns slowest what is simplest: that every frame looks like the given one. So the
    path conv_in -> skip -> last shortcut -> normalisation -> SiLU -> conv_out starts as a copy. Each input channel u
    travels as the pair (u, -u) in one normalisation group, whose mean is then always zero, and since
    silu(u) - silu(-u) = u the nonlinearity drops out. The raw output starts as -`copies` times the condition latents,
    which at high noise is what EDM's equation 7 wants of it.

    Raises:
        DataError: the outermost width is not twice the input channels, or the groups do not hold two channels.
    """
    zero_branches(cast(nn.Module, unet))
    inward, outward = cast(nn.Conv2d, unet.conv_in), cast(nn.Conv2d, unet.conv_out)
    shortcut = cast(nn.Conv2d, unet.up_blocks[-1].resnets[-1].spatial_res_block.conv_shortcut)
    channels, width = inward.in_channels, inward.out_channels
    latent = outward.out_channels
    if width != 2 * channels or width != 2 * unet.conv_norm_out.num_groups or channels != 2 * latent:
        raise DataError(f"a copying start takes {channels} pairs in {2 * channels} channels, not {width}")
    pairs = torch.stack([torch.eye(channels), -torch.eye(channels)], dim=1).reshape(width, channels)
    for layer in (inward, outward, shortcut):
        layer.weight.mul_(0.1)
        cast(Tensor, layer.bias).zero_()
    inward.weight[:, :, 1, 1] += pairs
    shortcut.weight[:, -width:, 0, 0] += torch.eye(width)
    outward.weight[:, :, 1, 1] -= copies * pairs[:, latent:].T


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
        path = resolve_source(config.init, out, "init")
        start = _from_run(config, path) if is_run(path) else published_start(path, preset(config.preset))
        unet, mask = convert_task(start.unet, start.task, spec, config.num_frames), start.mask
    else:
        unet = build_unet(preset(config.preset), spec, num_frames=config.num_frames)
        if config.copying_start:
            start_denoiser(unet)
    rewrite_exactly(cast(nn.Module, unet), context_tokens=spec.context_tokens)
    enable_image_rows(unet)
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


def convert_task(
    unet: UNetSpatioTemporalConditionModel, was: TaskSpec, spec: TaskSpec, num_frames: int
) -> UNetSpatioTemporalConditionModel:
    """A denoiser of the task `was` as the start of one of `spec`, in place: narrowed first where it must be."""
    if was == spec:
        unet.register_to_config(num_frames=num_frames)
        return unet
    fewer = spec.concat_latents < was.concat_latents or spec.concat_masks < was.concat_masks
    if fewer or any(name not in spec.vector for name in was.vector):
        return drop_inputs(unet, was, spec, num_frames)
    return grow_inputs(unet, was, spec, num_frames=num_frames)


@torch.no_grad()
def drop_inputs(
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

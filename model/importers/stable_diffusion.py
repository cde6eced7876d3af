"""Stable Diffusion as the start of a video model (paper, section 4.1 and appendix D, stage I).

`denoiser_from` makes its UNet2DConditionModel the spatial layers of ours. The temporal layers, and the embedding of
frame rate and motion bucket, are new and start as nothing: their last layers are zero, so the network computes of every
frame what Stable Diffusion did, of clips as of pictures. Every weight of the folder has its place, or nothing is made.

What carries over. With sigma_data = 1, EDM's c_in x is the variance-preserving x_t that Stable Diffusion was trained
on, and EDM's F is its v (Karras et al. 2022, table 1): so a v-predicting network already is F, at every noise level,
but for one thing. Its timestep is a step from 0 to 999; ours is c_noise = ln(sigma) / 4. So the paper trains the time
embedding alone for 1,000 iterations before all else. A network that predicts the noise (`epsilon`) is no such start
and is refused.

One difference stays: in the up blocks and in the down blocks with attention, diffusers' video class normalises with
1e-6 under the root where Stable Diffusion has 1e-5. No config holds that number, so a saved checkpoint could not keep
the other one. (A random network of unit size changes by 1e-4 for it.)

`autoencoder_from` gives its AutoencoderKL the temporal decoder's form, whose temporal layers change nothing either. The
1x1 convolution before the decoder is folded into the first one: exactly in its weights, and in its bias everywhere but
in the outermost latent cells, which see the zeros around the picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.resnet import TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from model.errors import CheckpointError
from model.presets import Preset
from model.tasks import TASKS
from model.unet import build_unet
from model.weights import load_strict, some

NEW_IN_DENOISER = ("temporal_res_block.", "temporal_transformer_blocks.", "time_mixer.", "time_pos_embed.", "add_embed")
NEW_IN_DECODER = ("temporal_res_block.", "time_mixer.", "time_conv_out.")

# What changes a network's output and not its weights' shapes, as our networks have it.
_UNET_CONFIG: Mapping[str, object] = {
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_num_groups": 32,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "use_linear_projection": True,
}
_VAE_CONFIG: Mapping[str, object] = {"act_fn": "silu", "norm_num_groups": 32}
_RESNETS = re.compile(r"(resnets\.\d+\.)")


def denoiser_from(folder: Path, preset: Preset) -> UNetSpatioTemporalConditionModel:
    """A text-to-video denoiser of a preset's size, from a folder of Stable Diffusion in diffusers' format.

    Raises:
        CheckpointError: the folder is incomplete, its network is of another size or form, or it does not predict v.
    """
    _refuse_other_predictions(folder)
    old = load_strict(UNet2DConditionModel, folder / "unet")
    config = cast(Any, old).config
    _refuse_other_forms(folder / "unet", config, _UNET_CONFIG)
    levels = len(config["block_out_channels"])
    heads = config["num_attention_heads"] or config["attention_head_dim"]
    heads = tuple(heads) if isinstance(heads, list | tuple) else (int(heads),) * levels
    if heads != preset.unet.heads:
        raise CheckpointError(
            f"{folder / 'unet'} has {heads} attention heads, size {preset.name!r} {preset.unet.heads}", param="preset"
        )
    unet = build_unet(preset, TASKS["text-to-video"])
    weights = {_RESNETS.sub(r"\1spatial_res_block.", name): p for name, p in cast(nn.Module, old).state_dict().items()}
    _put(cast(nn.Module, unet), weights, NEW_IN_DENOISER, folder / "unet", preset.name)
    _still(cast(nn.Module, unet))
    _zero(unet.add_embedding.linear_2)
    return unet


def autoencoder_from(folder: Path) -> AutoencoderKLTemporalDecoder:
    """The autoencoder of Stable Diffusion, `folder` (its vae/), with a decoder that may learn of time.

    Raises:
        CheckpointError: the folder is incomplete, or the network of another form.
    """
    old = load_strict(AutoencoderKL, folder)
    config = cast(Any, old).config
    _refuse_other_forms(folder, config, _VAE_CONFIG)
    shared = ("block_out_channels", "layers_per_block", "latent_channels", "scaling_factor", "force_upcast")
    vae = AutoencoderKLTemporalDecoder(
        in_channels=3,
        out_channels=3,
        down_block_types=tuple(config["down_block_types"]),
        **{name: config[name] for name in shared},
    )
    weights = dict(cast(nn.Module, old).state_dict())
    if "post_quant_conv.weight" in weights:
        _fold(weights)
    weights = {
        _RESNETS.sub(r"\1spatial_res_block.", name) if name.startswith("decoder.") else name: p
        for name, p in weights.items()
    }
    _put(cast(nn.Module, vae), weights, NEW_IN_DECODER, folder, "its config")
    _still(cast(nn.Module, vae))
    last = vae.decoder.time_conv_out
    _zero(last)
    with torch.no_grad():
        last.weight[:, :, 1, 0, 0] = torch.eye(3)
    return vae


def _refuse_other_predictions(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        prediction = json.loads(path.read_text()).get("prediction_type", "epsilon")
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is missing or not valid JSON: {error}", param="model") from error
    if prediction != "v_prediction":
        raise CheckpointError(
            f"{folder} predicts {prediction!r}; a start predicts v: take Stable Diffusion 2.1 itself, not its "
            "base model",
            param="model",
        )


def _refuse_other_forms(folder: Path, config: Mapping[str, Any], ours: Mapping[str, object]) -> None:
    other = [f"{name} {config[name]!r}, not {value!r}" for name, value in ours.items() if config[name] != value]
    if other:
        raise CheckpointError(f"{folder} is of another form than ours: {', '.join(other)}", param="model")


def _put(network: nn.Module, weights: Mapping[str, Tensor], new: tuple[str, ...], folder: Path, size: str) -> None:
    """Give a network the weights, all of them; what else it has must be `new`."""
    own = network.state_dict()
    if unknown := sorted(weights.keys() - own.keys()):
        raise CheckpointError(f"{folder} has weights that have no place in ours: {some(unknown)}", param="model")
    if missing := sorted(name for name in own.keys() - weights.keys() if not any(part in name for part in new)):
        raise CheckpointError(f"{folder} lacks {some(missing)}: it is of another size than {size!r}", param="preset")
    wrong = [
        f"{name} {tuple(p.shape)} for {tuple(own[name].shape)}"
        for name, p in weights.items()
        if p.shape != own[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{folder} is of another size than {size!r}: {some(wrong)}", param="preset")
    network.load_state_dict({**own, **weights})


def _fold(weights: dict[str, Tensor]) -> None:
    """The 1x1 convolution before the decoder, into the decoder's first."""
    mix, shift = weights.pop("post_quant_conv.weight")[:, :, 0, 0], weights.pop("post_quant_conv.bias")
    first = weights["decoder.conv_in.weight"]
    weights["decoder.conv_in.bias"] = weights["decoder.conv_in.bias"] + torch.einsum("ochw,c->o", first, shift)
    weights["decoder.conv_in.weight"] = torch.einsum("ochw,ci->oihw", first, mix)


def _still(network: nn.Module) -> None:
    """Let every temporal branch start as nothing."""
    for layer in network.modules():
        if isinstance(layer, TemporalResnetBlock):
            _zero(layer.conv2)
        elif isinstance(layer, TemporalBasicTransformerBlock):
            for branch in (layer.ff_in, layer.ff):
                _zero(branch.net[-1])
            for attention in (layer.attn1, layer.attn2):
                _zero(attention.to_out[0])
        elif isinstance(layer, TransformerSpatioTemporalModel):
            _zero(layer.time_pos_embed.linear_2)


def _zero(layer: Any) -> None:
    for p in layer.parameters():
        nn.init.zeros_(p)

"""The frozen networks that a denoiser's run stands on: out of a run of ours, or out of published weights.

| setting | run | folder in diffusers' format | single file |
|---|---|---|---|
| vae | an autoencoder's | `vae/` of it, or itself; an image autoencoder gets a temporal decoder | yes |
| image_encoder, for pictures | the contrastive run's | `image_encoder/`, `feature_extractor/` | yes |
| image_encoder, for text | the contrastive run's | `text_encoder/`, `tokenizer/`, or an encoder's own folder | no |
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from model.checkpoint import pretrained
from model.encoders import ImageEncoder, TextEncoder, load_conditioners, load_text_encoder
from model.errors import CheckpointError, DataError
from model.importers.sgm import image_encoder_of, read
from model.importers.stable_diffusion import autoencoder_from
from model.optimized.rewrites import skip_zero_branches, temporal_convolutions
from model.presets import Preset, preset
from model.tasks import TASKS
from model.vae import build_vae
from model.weights import class_of, load_strict
from training.config import ImageEncoderConfig
from training.objectives.contrastive import CLIP_MEAN, CLIP_STD, Towers
from training.recipes import RECIPES
from training.runs import averaged, is_run, is_single_file, run_config


def frozen_vae(path: Path, size: Preset) -> AutoencoderKLTemporalDecoder:
    """The autoencoder, in evaluation mode.

    Args:
        size: of the denoiser that is to read its latents.

    Raises:
        DataError: its latents have another number of channels than the denoiser reads.
        CheckpointError: there is none, or it is incomplete.
    """
    if is_run(path):
        vae = build_vae(preset(run_config(path)["preset"]))
        temporal_convolutions(cast(nn.Module, vae))
        averaged(cast(nn.Module, vae), path)
    else:
        vae = _published_vae(path, size)
        temporal_convolutions(cast(nn.Module, vae))
        cast(nn.Module, vae).eval().requires_grad_(False)
    skip_zero_branches(cast(nn.Module, vae))
    has, reads = int(vae.config["latent_channels"]), size.vae.latent_channels
    if has != reads:
        raise DataError(f"{path} has latents of {has} channels, a denoiser of size {size.name!r} reads {reads}")
    return vae


def _published_vae(path: Path, size: Preset) -> AutoencoderKLTemporalDecoder:
    if is_single_file(path):
        return cast(AutoencoderKLTemporalDecoder, cast(nn.Module, read(path, size, "vae")[0].vae).float())
    folder = path / "vae" if (path / "vae").is_dir() else path
    kind = class_of(folder)
    if kind == "AutoencoderKLTemporalDecoder":
        return load_strict(AutoencoderKLTemporalDecoder, folder)
    if kind == "AutoencoderKL":
        return autoencoder_from(folder)
    raise CheckpointError(f"{folder} holds {kind}, no autoencoder that is known here", param="vae")


def trained_towers(folder: Path) -> tuple[Towers, CLIPTokenizer]:
    """Both contrastive towers of a run, and the tokenizer that lies beside them."""
    values = run_config(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    config = dataclasses.replace(cast(ImageEncoderConfig, RECIPES["mini-image-encoder"]()), preset=values["preset"])
    return cast(Towers, averaged(Towers(config, tokenizer), folder)), tokenizer


def has_vision(path: Path) -> bool:
    """Whether there is a network that reads pictures."""
    return is_run(path) or is_single_file(path) or (path / "image_encoder").is_dir()


def frozen_vision(path: Path, size: Preset) -> ImageEncoder:
    """The network that reads pictures, with its normalisation.

    Raises:
        DataError: its embedding has another width than the denoiser reads.
        CheckpointError: there is none, or it is incomplete.
    """
    if is_run(path):
        tower = ImageEncoder(trained_towers(path)[0].image, CLIP_MEAN, CLIP_STD)
    elif is_single_file(path):
        tower = image_encoder_of(read(path, size, "encoder")[0])
        cast(nn.Module, tower.network).float().eval().requires_grad_(False)
    else:
        tower = cast(ImageEncoder, load_conditioners(path, TASKS["image-to-video"], pretrained("cpu", torch.float32)))
    _refuse_other_width(path, int(tower.network.config.projection_dim), size)
    return tower


def frozen_text(path: Path, size: Preset) -> TextEncoder:
    """The network that reads prompts, without a projection, and its tokenizer.

    Raises:
        DataError: its tokens have another width than the denoiser reads, or there is none in a single file.
        CheckpointError: there is none, or it is incomplete.
    """
    if is_single_file(path):
        raise DataError(f"{path} holds no text encoder; name a folder of Stable Diffusion with --set image_encoder=DIR")
    if is_run(path):
        tower = _trained_text(path)
    else:
        parts = (path / "text_encoder", path / "tokenizer") if (path / "text_encoder").is_dir() else (path, path)
        tower = load_text_encoder(*parts, pretrained("cpu", torch.float32))
    _refuse_other_width(path, int(tower.network.config.hidden_size), size)
    return tower


def _trained_text(folder: Path) -> TextEncoder:
    towers, tokenizer = trained_towers(folder)
    encoder = CLIPTextModel(towers.text.config)
    weights = towers.text.text_model.state_dict()
    encoder.load_state_dict({name.removeprefix("text_model."): value for name, value in weights.items()})
    return TextEncoder(encoder.eval().requires_grad_(False), tokenizer)


def _refuse_other_width(path: Path, width: int, size: Preset) -> None:
    if width != size.unet.context_dim:
        raise DataError(
            f"{path} gives numbers of width {width}; a denoiser of size {size.name!r} reads {size.unet.context_dim}"
        )

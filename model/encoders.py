"""Image and text encoders: the frozen CLIP networks that read a request, one kind a TaskSpec.context.

In a checkpoint's folder:

    image_encoder/ feature_extractor/   for `image` and `image-pair`
    conditioning.safetensors            for `image-pair`: `mask`, the learned embedding of a frame that is not given
    text_encoder/ tokenizer/            for `text`

Legend: C latent channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from model.errors import CheckpointError
from model.presets import ImageEncoderSize, Preset, TextEncoderSize
from model.tasks import ContextSource, TaskSpec

MASK_FILE = "conditioning.safetensors"


CLIP_NORMALISATION = (tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))
"""Mean and standard deviation of CLIP's training pictures, a number a channel."""


def clip_image_processor(mean: Sequence[float], std: Sequence[float]) -> Any:
    """transformers' feature extractor, which diffusers' pipelines hold and checkpoint folders describe.

    The one in PIL, where transformers has several: the other needs torchvision, and asking for that one without it
    logs a notice. Nothing here preprocesses with either (model.conditioning.clip_input).
    """
    try:
        from transformers import CLIPImageProcessorPil as Processor
    except ImportError:  # before transformers had two
        from transformers import CLIPImageProcessor as Processor
    return Processor(image_mean=list(mean), image_std=list(std))


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """A CLIP image encoder with its preprocessing.

    Args:
        mean, std: CLIP normalisation of pictures in [0, 1], one number a channel.
    """

    network: CLIPVisionModelWithProjection
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        self.network.save_pretrained(folder / "image_encoder")
        clip_image_processor(self.mean, self.std).save_pretrained(folder / "feature_extractor")

    def cast(self, dtype: torch.dtype) -> ImageEncoder:
        """It in another dtype, in place."""
        _module(self.network).to(dtype)
        return self


@dataclass(frozen=True, slots=True)
class ImagePairEncoder(ImageEncoder):
    """An ImageEncoder for the two ends of a clip.

    Args:
        mask: the learned embedding of the frames between them.
    """

    mask: Float[Tensor, " C"]

    @classmethod
    def of(cls, encoder: ImageEncoder, mask: Float[Tensor, " C"]) -> ImagePairEncoder:
        """The image encoder with a mask embedding."""
        return cls(encoder.network, encoder.mean, encoder.std, mask)

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        ImageEncoder.save(self, folder)
        save_file({"mask": self.mask.detach().cpu().contiguous()}, folder / MASK_FILE)

    def cast(self, dtype: torch.dtype) -> ImagePairEncoder:
        """It in another dtype; the network in place."""
        ImageEncoder.cast(self, dtype)
        return replace(self, mask=self.mask.to(dtype))


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A CLIP text encoder and its tokenizer."""

    network: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        self.network.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")

    def cast(self, dtype: torch.dtype) -> TextEncoder:
        """It in another dtype, in place."""
        _module(self.network).to(dtype)
        return self


Conditioners = ImageEncoder | ImagePairEncoder | TextEncoder
"""A checkpoint's encoders of requests, of the kind that its task's spec names (TaskSpec.context)."""

NetworkLoader = Callable[[type[Any], Path], Any]
"""Gives a network of a class from its folder, in evaluation mode, on its device; raises CheckpointError."""


def load_conditioners(path: Path, task: TaskSpec, network: NetworkLoader) -> Conditioners:
    """The encoders of the checkpoint folder `path`, frozen.

    Args:
        network: loads a network of a class from its folder.

    Raises:
        CheckpointError: a piece that the task needs is missing or does not fit.
    """
    return ENCODERS[task.context].load(path, network)


def _load_vision(path: Path, network: NetworkLoader) -> ImageEncoder:
    encoder = network(CLIPVisionModelWithProjection, path / "image_encoder")
    config = path / "feature_extractor" / "preprocessor_config.json"
    try:
        processor = json.loads(config.read_text())
        return ImageEncoder(encoder, tuple(processor["image_mean"]), tuple(processor["image_std"]))
    except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{config} is missing or not complete: {error}", param="model") from error


def _load_pair(path: Path, network: NetworkLoader) -> ImagePairEncoder:
    encoder = _load_vision(path, network)
    try:
        mask = load_file(path / MASK_FILE)["mask"]
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path / MASK_FILE} holds no mask embedding: {error}", param="model") from error
    return ImagePairEncoder.of(encoder, mask.to(encoder.network.device, torch.float32))


def _load_text(path: Path, network: NetworkLoader) -> TextEncoder:
    return load_text_encoder(path / "text_encoder", path / "tokenizer", network)


def load_text_encoder(folder: Path, words: Path, network: NetworkLoader) -> TextEncoder:
    """A CLIP text encoder and its tokenizer, each from its folder (which may be the same).

    Raises:
        CheckpointError: one is missing, or they do not belong together.
    """
    encoder = network(CLIPTextModel, folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{words} does not load: {error}", param="model") from error
    # A tokenizer whose files are missing comes without complaint, and empty.
    sizes = (len(tokenizer), int(tokenizer.model_max_length))
    reads = (int(encoder.config.vocab_size), int(encoder.config.max_position_embeddings))
    if sizes[0] != reads[0] or not 2 < sizes[1] <= reads[1]:
        raise CheckpointError(
            f"{words} has {sizes[0]} words and texts of {sizes[1]} tokens; its encoder reads {reads[0]} and "
            f"{reads[1]}: they do not belong together, or a file is missing",
            param="model",
        )
    return TextEncoder(encoder, tokenizer)


def _module(network: object) -> nn.Module:
    return cast(nn.Module, network)


def build_image_encoder(size: ImageEncoderSize) -> CLIPVisionModelWithProjection:
    """A freshly initialised CLIP vision tower."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**size.config()))


def build_text_encoder(size: TextEncoderSize, tokenizer: PreTrainedTokenizerBase) -> CLIPTextModel:
    """A freshly initialised CLIP text tower for a tokenizer."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextModel(CLIPTextConfig(**size.config(), vocab_size=len(tokenizer), **special))


def byte_tokenizer(length: int) -> CLIPTokenizer:
    """A CLIP tokenizer that has learned no merges: one token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=length)


def build_conditioners(preset: Preset, task: TaskSpec) -> Conditioners:
    """Freshly initialised encoders of a preset's sizes."""
    return ENCODERS[task.context].build(preset, task)


def _build_vision(preset: Preset, _: TaskSpec) -> ImageEncoder:
    return ImageEncoder(build_image_encoder(preset.image_encoder), *CLIP_NORMALISATION)


def _build_pair(preset: Preset, task: TaskSpec) -> ImagePairEncoder:
    return ImagePairEncoder.of(_build_vision(preset, task), torch.randn(preset.vae.latent_channels))


def _build_text(preset: Preset, task: TaskSpec) -> TextEncoder:
    tokenizer = byte_tokenizer(task.context_tokens)
    return TextEncoder(build_text_encoder(preset.text_encoder, tokenizer), tokenizer)


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """How the encoders of one source of context are loaded from a checkpoint's folder, and built anew."""

    load: Callable[[Path, NetworkLoader], Conditioners]
    build: Callable[[Preset, TaskSpec], Conditioners]


ENCODERS: dict[ContextSource, EncoderKind] = {
    "image": EncoderKind(_load_vision, _build_vision),
    "image-pair": EncoderKind(_load_pair, _build_pair),
    "text": EncoderKind(_load_text, _build_text),
}

"""A checkpoint as ONNX graphs: every network of its task, rewritten exactly, traced once.

    unet            model.backends.onnx_export: the Denoiser protocol
    vae_encoder     pictures in [-1, 1] -> the MODE of their latents, unscaled
    vae_decoder     a chunk of unscaled latents, decoded together -> frames; the chunk's length is free
    image_encoder   CLIP's input -> its embedding                      (tasks that read pictures)
    text_encoder    token numbers -> the last hidden states            (tasks that read a prompt)

Legend: B pictures or prompts, t frames of a chunk, C latent channels, N tokens, D their width, H, W pixels; h, w
latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from diffusers import AutoencoderKLTemporalDecoder, ModelMixin
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from model.backends.onnx_export import (
    OPSET,
    TRACED_BATCH,
    TRACED_CHUNK,
    DecoderModule,
    DenoiserModule,
    Graph,
    Port,
    decoder_graph,
    denoiser_graph,
    write_graph,
)
from model.checkpoint import Checkpoint
from model.conditioning import CLIP_SIZE
from model.encoders import Conditioners, ImageEncoder, TextEncoder
from model.errors import CheckpointError
from model.optimized.rewrites import fold_blends, rewrite_exactly
from model.shapes import VAE_STRIDE, VideoShape
from model.tasks import ContextSource

LONGEST_CHUNK = 14
"""Frames decoded at once, at most: longer ones pass 2^31 elements at full size."""


@dataclass(frozen=True, slots=True)
class Component:
    """A network to export.

    Args:
        module: in evaluation mode; its forward() takes the graph's inputs by name.
        traced: sizes of the graph's free axes while tracing.
        largest: sizes of the free axes that a compiled engine must take, at most.
    """

    module: nn.Module
    graph: Graph
    traced: dict[str, int]
    largest: dict[str, int]

    @property
    def name(self) -> str:
        """Its file's stem."""
        return self.graph.name


@dataclass(frozen=True, slots=True)
class ExportSize:
    """What an export is made for.

    Args:
        height, width: of the video, in pixels.
        free: leave height and width free in the graphs; engines take exactly these all the same.
        max_batch: largest batch size of one denoiser call that an engine takes.
    """

    height: int
    width: int
    free: bool = True
    max_batch: int = 4


class VaeEncoder(nn.Module):
    """The autoencoder's encoder as a graph sees it."""

    def __init__(self, vae: AutoencoderKLTemporalDecoder) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> Tensor:
        """The mode of the latents, [B, C, h, w]."""
        mode: Tensor = self.vae.encode(pixels).latent_dist.mode()
        return mode


class ImageEncoderModule(nn.Module):
    """The image encoder as it is traced: CLIP's input in, embeddings out."""

    def __init__(self, encoder: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings, [B, D]."""
        embeds: Tensor = self.encoder(pixels).image_embeds
        return embeds


class TextEncoderModule(nn.Module):
    """The text encoder as it is traced: tokens in, the last hidden states out."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        """The last hidden states, [B, N, D]."""
        hidden: Tensor = self.encoder(tokens).last_hidden_state
        return hidden


def components(checkpoint: Checkpoint, size: ExportSize) -> list[Component]:
    """Every network of the checkpoint's task with its graph; `rewrite` comes before they are exported.

    Raises:
        InvalidRequest: a size the networks cannot make.
    """
    entry = checkpoint.entry
    VideoShape(entry.num_frames[0], size.height, size.width, entry.unit)
    encoder = ENCODER_COMPONENTS[entry.task.context](checkpoint.conditioners)
    return [_denoiser(checkpoint, size), *_autoencoder(checkpoint, size), encoder]


def rewrite(checkpoint: Checkpoint) -> None:
    """Apply every exact rewrite to the checkpoint's networks, in place (model.optimized.rewrites)."""
    rewrite_exactly(checkpoint.unet, context_tokens=checkpoint.entry.task.context_tokens)
    rewrite_exactly(checkpoint.vae)
    fold_blends(checkpoint.unet)
    fold_blends(checkpoint.vae)


def export_component(component: Component, folder: Path, opset: int = OPSET) -> Path:
    """Write NAME.onnx into the folder.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
    """
    file = folder / f"{component.name}.onnx"
    write_graph(component.module, component.graph, file, component.traced, opset)
    return file


def _denoiser(checkpoint: Checkpoint, size: ExportSize) -> Component:
    height, width = size.height // VAE_STRIDE, size.width // VAE_STRIDE
    graph = denoiser_graph(
        checkpoint.entry.task,
        checkpoint.unet.config,
        height=height,
        width=width,
        dtype=_dtype(checkpoint.unet),
        free_size=size.free,
    )
    free = {"height": height, "width": width} if size.free else {}
    return Component(
        DenoiserModule(checkpoint.unet), graph, {"batch": TRACED_BATCH} | free, {"batch": size.max_batch} | free
    )


def _autoencoder(checkpoint: Checkpoint, size: ExportSize) -> list[Component]:
    vae, dtype, channels = checkpoint.vae, _dtype(checkpoint.vae), checkpoint.latent_channels
    height, width = size.height // VAE_STRIDE, size.width // VAE_STRIDE
    pixel: tuple[int | str, ...] = ("8*height", "8*width") if size.free else (size.height, size.width)
    latent: tuple[int | str, ...] = ("height", "width") if size.free else (height, width)
    decoder = decoder_graph(channels, dtype, height=height, width=width, free_size=size.free)
    pictures = {"8*height": size.height, "8*width": size.width} if size.free else {}
    cells = {"height": height, "width": width} if size.free else {}
    encoder = Graph(
        "vae_encoder",
        (Port("pixels", dtype, ("batch", 3, *pixel)),),
        (Port("latents", dtype, ("batch", channels, *latent)),),
    )
    longest = min(LONGEST_CHUNK, checkpoint.entry.num_frames[0])
    return [
        Component(VaeEncoder(vae), encoder, {"batch": TRACED_BATCH} | pictures, {"batch": 2} | pictures),
        Component(DecoderModule(vae), decoder, {"frames": TRACED_CHUNK} | cells, {"frames": longest} | cells),
    ]


def _text_encoder(conditioners: Conditioners) -> Component:
    encoder = cast(TextEncoder, conditioners)
    network, tokens = encoder.network, int(encoder.tokenizer.model_max_length)
    if getattr(network.config, "use_attention_mask", False):
        raise CheckpointError("a text encoder that masks its padding is not exported", param="model")
    graph = Graph(
        "text_encoder",
        (Port("tokens", "int64", ("batch", tokens)),),
        (Port("context", _dtype(network), ("batch", tokens, int(network.config.hidden_size))),),
    )
    return Component(TextEncoderModule(network), graph, {"batch": TRACED_BATCH}, {"batch": 1})


def _image_encoder(conditioners: Conditioners) -> Component:
    network = cast(ImageEncoder, conditioners).network
    graph = Graph(
        "image_encoder",
        (Port("pixels", _dtype(network), ("batch", 3, CLIP_SIZE, CLIP_SIZE)),),
        (Port("context", _dtype(network), ("batch", int(network.config.projection_dim))),),
    )
    return Component(ImageEncoderModule(network), graph, {"batch": TRACED_BATCH}, {"batch": 2})


ENCODER_COMPONENTS: dict[ContextSource, Callable[[Conditioners], Component]] = {
    "image": _image_encoder,
    "image-pair": _image_encoder,
    "text": _text_encoder,
}
"""The component of each kind of encoders."""


def _dtype(network: ModelMixin) -> str:
    return str(network.dtype).removeprefix("torch.")

"""An exported folder as a Checkpoint: graphs of onnxruntime or OpenVINO in place of every network's weights.

Each network is diffusers' or transformers' own class without its layers: its config, device and dtype are read as
before, and its forward functions run the graph.

Legend: B pictures or prompts, t frames of a chunk, C latent channels, N tokens, D their width, H, W pixels; h, w
latent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from model.backends.onnxruntime import OnnxGraph
from model.backends.openvino import OpenVinoGraph, openvino_device
from model.denoiser import CpuThreads
from model.errors import CheckpointError
from model.export_manifest import ONNX_FOLDER, read_manifest
from model.shapes import VAE_STRIDE
from model.weights import release_weights, strip_layers


class ExportedNetworks:
    """The networks of an exported folder, in the runtime that it was exported for.

    Args:
        device: of the tensors that come and go.
        graphs_on: where OpenVINO runs the graphs: cpu, or one of Intel's devices, xpu or npu.

    Raises:
        CheckpointError: a file is missing or not the one that was exported.
        MissingExtra: the runtime, onnxruntime or openvino, is not installed.
    """

    def __init__(self, folder: Path, device: torch.device, cores: CpuThreads, graphs_on: str = "cpu") -> None:
        self._folder, self._device, self._cores, self._graphs_on = folder, device, cores, graphs_on
        self.manifest = read_manifest(folder)
        self.manifest.check_files(folder)

    def __call__(self, kind: type[Any], path: Path) -> Any:
        """The network of the folder `path`, as model.checkpoint.load asks for it."""
        makers = {
            "unet": self.unet,
            "vae": self.vae,
            "image_encoder": self.image_encoder,
            "text_encoder": self.text_encoder,
        }
        network = makers[path.name]()
        assert isinstance(network, kind)
        return network

    def unet(self) -> UNetSpatioTemporalConditionModel:
        """The denoiser's config, device and dtype; a backend runs it (model.backends)."""
        config = self._config("unet")
        with torch.device("meta"):
            network = UNetSpatioTemporalConditionModel.from_config(config)
        strip_layers(network, self._device, getattr(torch, self.manifest.dtype))
        return network

    def vae(self) -> AutoencoderKLTemporalDecoder:
        """The autoencoder, with encode() and decode()."""
        with torch.device("meta"):
            network = AutoencoderKLTemporalDecoder.from_config(self._config("vae"))
        encoder, decoder = self._graph("vae_encoder"), self._graph("vae_decoder")
        channels = int(network.config["latent_channels"])

        def encode(pixels: Float[Tensor, "B 3 H W"]) -> SimpleNamespace:
            height, width = pixels.shape[-2] // VAE_STRIDE, pixels.shape[-1] // VAE_STRIDE
            mode = encoder.run({"pixels": pixels}, (len(pixels), channels, height, width))
            return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: mode))

        network.__dict__.update(encode=encode, decode=decode_by(decoder))
        strip_layers(network, self._device, decoder.dtype)
        return network

    def image_encoder(self) -> CLIPVisionModelWithProjection:
        """The vision tower: its forward() gives `image_embeds`."""
        config = CLIPVisionConfig(**self._config("image_encoder"))
        with torch.device("meta"):
            network = CLIPVisionModelWithProjection(config)
        graph = self._graph("image_encoder")

        def forward(pixels: Float[Tensor, "B 3 S S"]) -> SimpleNamespace:
            return SimpleNamespace(
                image_embeds=graph.run({"pixels": pixels}, (len(pixels), int(config.projection_dim)))
            )

        network.__dict__["forward"] = forward
        strip_layers(network, self._device, graph.dtype)
        return network

    def text_encoder(self) -> CLIPTextModel:
        """The text tower: its forward() gives `last_hidden_state`."""
        config = CLIPTextConfig(**self._config("text_encoder"))
        with torch.device("meta"):
            network = CLIPTextModel(config)
        graph = self._graph("text_encoder")

        def forward(tokens: Int[Tensor, "B N"], attention_mask: Tensor | None = None) -> SimpleNamespace:
            if attention_mask is not None:
                raise CheckpointError("an exported text encoder does not mask its padding", param="model")
            hidden = graph.run({"tokens": tokens}, (*tokens.shape, int(config.hidden_size)))
            return SimpleNamespace(last_hidden_state=hidden)

        network.__dict__["forward"] = forward
        strip_layers(network, self._device, graph.dtype)
        return network

    def _graph(self, name: str) -> OnnxGraph | OpenVinoGraph:
        file = self._folder / ONNX_FOLDER / f"{name}.onnx"
        if self.manifest.backend == "openvino":
            return OpenVinoGraph(file, openvino_device(self._graphs_on), self._cores)
        return OnnxGraph(file, self._device, self._cores)

    def _config(self, name: str) -> Mapping[str, Any]:
        config: dict[str, Any] = json.loads((self._folder / name / "config.json").read_text())
        return config


def decode_by(graph: OnnxGraph | OpenVinoGraph) -> Callable[..., SimpleNamespace]:
    """The decode function of an autoencoder whose decoder is a graph."""

    def decode(latents: Float[Tensor, "t C h w"], num_frames: int) -> SimpleNamespace:
        if num_frames != len(latents):
            raise CheckpointError(f"the decoder takes one chunk of {len(latents)} frames, not {num_frames}")
        height, width = latents.shape[-2] * VAE_STRIDE, latents.shape[-1] * VAE_STRIDE
        return SimpleNamespace(sample=graph.run({"latents": latents}, (num_frames, 3, height, width)))

    return decode


def replace_decoder(vae: AutoencoderKLTemporalDecoder, graph: OnnxGraph | OpenVinoGraph) -> None:
    """Give an autoencoder a graph in place of its decoder, whose weights are freed; its encoder stays."""
    vae.__dict__["decode"] = decode_by(graph)
    release_weights(vae.decoder)

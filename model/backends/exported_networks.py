"""An exported folder as a Checkpoint: onnxruntime sessions in place of every network's weights.

Each network is diffusers' or transformers' own class without its layers: its config, device and dtype are read as
before, and its forward functions run the graph.

Legend: B pictures or prompts, t frames of a chunk, C latent channels, N tokens, D their width, H, W pixels; h, w
latent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from model.backends.onnxruntime import OnnxGraph
from model.denoiser import CpuThreads
from model.errors import CheckpointError
from model.export_manifest import ONNX_FOLDER, read_manifest
from model.shapes import VAE_STRIDE


class ExportedNetworks:
    """The networks of an exported folder.

    Raises:
        CheckpointError: a file is missing or not the one that was exported.
        MissingExtra: onnxruntime is not installed.
    """

    def __init__(self, folder: Path, device: torch.device, cores: CpuThreads) -> None:
        self._folder, self._device, self._cores = folder, device, cores
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
        _strip_layers(network, self._device, getattr(torch, self.manifest.dtype))
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

        def decode(latents: Float[Tensor, "t C h w"], num_frames: int) -> SimpleNamespace:
            if num_frames != len(latents):
                raise CheckpointError(f"the decoder takes one chunk of {len(latents)} frames, not {num_frames}")
            height, width = latents.shape[-2] * VAE_STRIDE, latents.shape[-1] * VAE_STRIDE
            return SimpleNamespace(sample=decoder.run({"latents": latents}, (num_frames, 3, height, width)))

        network.__dict__.update(encode=encode, decode=decode)
        _strip_layers(network, self._device, decoder.dtype)
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
        _strip_layers(network, self._device, graph.dtype)
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
        _strip_layers(network, self._device, graph.dtype)
        return network

    def _graph(self, name: str) -> OnnxGraph:
        return OnnxGraph(self._folder / ONNX_FOLDER / f"{name}.onnx", self._device, self._cores)

    def _config(self, name: str) -> Mapping[str, Any]:
        config: dict[str, Any] = json.loads((self._folder / name / "config.json").read_text())
        return config


def _strip_layers(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Take a network's layers away; one empty parameter says on which device and in which dtype it computes."""
    network._modules.clear()
    network.register_parameter("empty", nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False))
    network.eval()

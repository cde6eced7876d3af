"""Network sizes: the published svd and svd-xt, the shipped mini, and tiny for tests.

A preset is four configs, in the words of the classes that take them (diffusers' UNetSpatioTemporalConditionModel and
AutoencoderKLTemporalDecoder, transformers' CLIPVisionModelWithProjection and CLIPTextModel), and the sampler's noise
range. Input channels and the vector's width are not written here: they follow from the task (model.tasks). Imports no
torch.

Sources: svd and svd-xt from their published configs (1,524,623,082 UNet parameters each); the rest is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import InvalidRequest
from model.tasks import TaskSpec


@dataclass(frozen=True, slots=True)
class UNetSize:
    """Widths of the denoiser, one entry a level."""

    channels: tuple[int, ...]
    heads: tuple[int, ...]
    layers_per_block: int
    context_dim: int

    def config(self, task: TaskSpec, latent_channels: int, num_frames: int) -> dict[str, object]:
        """The constructor's arguments, for a task at C latent channels and a fixed frame count."""
        levels = len(self.channels)
        return {
            "in_channels": task.unet_in_channels(latent_channels),
            "out_channels": latent_channels,
            "down_block_types": (*("CrossAttnDownBlockSpatioTemporal",) * (levels - 1), "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", *("CrossAttnUpBlockSpatioTemporal",) * (levels - 1)),
            "block_out_channels": self.channels,
            "num_attention_heads": self.heads,
            "layers_per_block": self.layers_per_block,
            "cross_attention_dim": self.context_dim,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": task.vector_size,
            "num_frames": num_frames,
        }


@dataclass(frozen=True, slots=True)
class VAESize:
    """Widths of the autoencoder; four levels, so that it strides by 8."""

    channels: tuple[int, int, int, int]
    layers_per_block: int
    latent_channels: int
    scaling_factor: float
    force_upcast: bool

    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "block_out_channels": self.channels,
            "layers_per_block": self.layers_per_block,
            "latent_channels": self.latent_channels,
            "scaling_factor": self.scaling_factor,
            "force_upcast": self.force_upcast,
        }


@dataclass(frozen=True, slots=True)
class ImageEncoderSize:
    """Widths of the CLIP vision tower; pictures are always 224 x 224."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    patch: int
    projection: int

    def config(self) -> dict[str, object]:
        """The arguments of transformers' CLIPVisionConfig."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "patch_size": self.patch,
            "projection_dim": self.projection,
            "image_size": 224,
            "hidden_act": "gelu",
        }


@dataclass(frozen=True, slots=True)
class TextEncoderSize:
    """Widths of the CLIP text tower; its vocabulary is its tokenizer's."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    tokens: int = 77

    def config(self) -> dict[str, object]:
        """The arguments of transformers' CLIPTextConfig, but for the vocabulary."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.tokens,
            "projection_dim": self.hidden,
            "hidden_act": "gelu",
        }


@dataclass(frozen=True, slots=True)
class NoiseRange:
    """The sampler's sigmas: Karras et al. 2022, equation 5."""

    sigma_min: float = 0.002
    sigma_max: float = 700.0
    rho: float = 7.0
    unit_start: bool = False
    """The first latents are noise times sigma_max, as a scheduler with timestep_spacing `linspace` has it."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A whole model's sizes."""

    name: str
    unet: UNetSize
    vae: VAESize
    image_encoder: ImageEncoderSize
    text_encoder: TextEncoderSize
    noise: NoiseRange
    num_frames: int
    height: int
    width: int


_SVD_UNET = UNetSize((320, 640, 1280, 1280), (5, 10, 20, 20), 2, 1024)
_SVD_VAE = VAESize((128, 256, 512, 512), 2, 4, 0.18215, True)
_CLIP_H = ImageEncoderSize(1280, 5120, 32, 16, 14, 1024)
_CLIP_H_TEXT = TextEncoderSize(1024, 4096, 23, 16)
"""Stable Diffusion 2.1's: OpenCLIP H without its last layer."""

PRESETS: dict[str, Preset] = {
    "svd": Preset("svd", _SVD_UNET, _SVD_VAE, _CLIP_H, _CLIP_H_TEXT, NoiseRange(), 14, 576, 1024),
    "svd-xt": Preset("svd-xt", _SVD_UNET, _SVD_VAE, _CLIP_H, _CLIP_H_TEXT, NoiseRange(), 25, 576, 1024),
    "mini": Preset(
        "mini",
        UNetSize((64, 64, 96), (4, 4, 6), 1, 128),
        VAESize((64, 64, 128, 128), 1, 16, 1.0, False),
        ImageEncoderSize(128, 512, 4, 4, 32, 128),
        TextEncoderSize(128, 512, 4, 4),
        NoiseRange(0.3, 100.0, 7.0),
        14,
        128,
        224,
    ),
    "tiny": Preset(
        "tiny",
        UNetSize((32, 64), (2, 4), 1, 32),
        VAESize((32, 32, 32, 32), 1, 4, 0.5, False),
        ImageEncoderSize(32, 64, 2, 2, 32, 32),
        TextEncoderSize(32, 64, 2, 2),
        NoiseRange(),
        6,
        64,
        64,
    ),
}


def preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in PRESETS:
        raise InvalidRequest(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}", param="preset")
    return PRESETS[name]

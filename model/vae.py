"""The autoencoder: an image encoder and a temporal decoder, diffusers' AutoencoderKLTemporalDecoder.

Legend: B clips, T frames, C latent channels, H, W pixels; h, w latent cells (8 pixels each).

Conventions of the published model, kept here: the encoder gives the MODE of its distribution; the conditioning latent
is not multiplied by the scaling factor, the latents that are denoised are; the decoder's temporal layers see the
borders of the chunks they are given, so the chunk plan is part of the result (model.shapes.even_chunks).
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers import AutoencoderKLTemporalDecoder
from jaxtyping import Float
from torch import Tensor

from model.presets import Preset
from model.shapes import even_chunks


def build_vae(preset: Preset, *, device: torch.device | str = "cpu") -> AutoencoderKLTemporalDecoder:
    """A freshly initialised autoencoder."""
    with torch.device(device):
        return AutoencoderKLTemporalDecoder(**preset.vae.config())


def encode_mode(vae: AutoencoderKLTemporalDecoder, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C h w"]:
    """Unscaled latents of pictures in [-1, 1]: the mode of the encoder's distribution."""
    mode: Tensor = vae.encode(pixels).latent_dist.mode()
    return mode


def decoder_dtype(vae: AutoencoderKLTemporalDecoder) -> torch.dtype:
    """The dtype of the decoder's weights, which the encoder's need not share; of the graph where it is an export."""
    decoder = getattr(vae, "decoder", None)
    return vae.dtype if decoder is None else cast(Tensor, next(decoder.parameters())).dtype


def upcast_encoder(vae: AutoencoderKLTemporalDecoder) -> None:
    """The encoder in float32, whose activations overflow in float16 (`force_upcast`); the decoder stays as it is.

    As diffusers' pipeline does: it upcasts to encode, and decodes in half precision.
    """
    for part in (vae.encoder, vae.quant_conv):
        part.float()


def decode_clip(
    vae: AutoencoderKLTemporalDecoder, latents: Float[Tensor, "T C h w"], largest_chunk: int
) -> Float[Tensor, "T 3 H W"]:
    """Frames in about [-1, 1] from one clip's unscaled latents, decoded in evenly split chunks."""
    frames: list[Tensor] = []
    first = 0
    for size in even_chunks(latents.shape[0], largest_chunk):
        frames.append(vae.decode(latents[first : first + size], num_frames=size).sample)
        first += size
    return torch.cat(frames)

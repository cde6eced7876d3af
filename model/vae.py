"""The autoencoder: an image encoder and a temporal decoder, diffusers' AutoencoderKLTemporalDecoder.

Legend: B clips, T frames, C latent channels, H, W pixels; h, w latent cells (8 pixels each).

Conventions of the published model, kept here: the encoder gives the MODE of its distribution; the conditioning latent
is not multiplied by the scaling factor, the latents that are denoised are; the decoder's temporal layers see the
borders of the chunks they are given, so the chunk plan is part of the result (model.shapes.even_chunks).

Clean latents become frames: the temporal autoencoder's decoder, in evenly split chunks.

The chunk plan is part of the result: the decoder's temporal convolutions see the borders of a chunk. Chunks are split
evenly (model.shapes.even_chunks), so no short last chunk flickers.

Legend: T frames, t frames of a chunk, C channels, H, W pixels; h, w latent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from jaxtyping import Float, UInt8
from torch import Tensor

from model.errors import GenerationFailed
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


def decode_chunk(vae: AutoencoderKLTemporalDecoder, latents: Float[Tensor, "t C h w"]) -> UInt8[np.ndarray, "t H W 3"]:
    """The frames of one chunk, decoded together. Latents as the diffusion model sees them (scaled).

    Raises:
        GenerationFailed: half precision overflowed.
    """
    with torch.inference_mode():
        plain = (latents / vae.config["scaling_factor"]).to(vae.device, decoder_dtype(vae))
        pixels: Tensor = vae.decode(plain, num_frames=latents.shape[0]).sample
        if pixels.dtype == torch.float16 and not bool(pixels.isfinite().all()):
            raise GenerationFailed("the decoder overflowed in float16; use --dtype bfloat16", code="not_finite")
        return to_uint8(pixels.float())


def to_uint8(pixels: Float[Tensor, "t 3 H W"]) -> UInt8[np.ndarray, "t H W 3"]:
    """Pixels in [-1, 1] as 8-bit frames: clamped, and rounded to the nearest level."""
    levels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    frames: np.ndarray = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return frames


def decode(
    vae: AutoencoderKLTemporalDecoder,
    latents: Float[Tensor, "T C h w"],
    largest_chunk: int,
    on_frames: Callable[[int], None] | None = None,
) -> UInt8[np.ndarray, "T H W 3"]:
    """All frames, in even chunks of at most `largest_chunk`; `on_frames` is told how many are done."""
    done: list[np.ndarray] = []
    for chunk in latents.split(even_chunks(latents.shape[0], largest_chunk)):
        done.append(decode_chunk(vae, chunk))
        if on_frames is not None:
            on_frames(sum(map(len, done)))
    return np.concatenate(done)

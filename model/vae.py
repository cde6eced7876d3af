"""The VAE: an image encoder and a temporal decoder, diffusers' AutoencoderKLTemporalDecoder.

As in the published model, the encoder gives the MODE of its distribution; the conditioning latent is not multiplied by
the scaling factor, the latents that are denoised are. Frames are decoded in chunks, whose borders the decoder's
temporal convolutions see: so the chunk plan is part of the result, and chunks are split evenly
(model.shapes.even_chunks), so that no short last chunk flickers; `diffusers` is its pipeline's plan, for parity.

Legend: N pictures, T frames, t frames of a chunk, C latent channels, H, W pixels; h, w latent cells (8 pixels each).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from jaxtyping import Float, UInt8
from torch import Tensor

from model.errors import GenerationFailed
from model.presets import Preset
from model.shapes import ChunkPlan, chunk_sizes

Frames = TypeVar("Frames", Tensor, np.ndarray)


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
    return torch.cat(_in_chunks(latents, largest_chunk, lambda chunk: _decode_together(vae, chunk)))


def _decode_together(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Tensor:
    pixels: Tensor = vae.decode(latents, num_frames=latents.shape[0]).sample
    return pixels


def _in_chunks(
    latents: Tensor,
    largest_chunk: int,
    decode_one: Callable[[Tensor], Frames],
    on_frames: Callable[[int], None] = lambda _: None,
    plan: ChunkPlan = "even",
) -> list[Frames]:
    """The frames of each chunk; `on_frames` is called with how many are done."""
    decoded: list[Frames] = []
    for chunk in latents.split(chunk_sizes(latents.shape[0], largest_chunk, plan)):
        decoded.append(decode_one(chunk))
        on_frames(sum(map(len, decoded)))
    return decoded


def decode_chunk(vae: AutoencoderKLTemporalDecoder, latents: Float[Tensor, "t C h w"]) -> UInt8[np.ndarray, "t H W 3"]:
    """The frames of one chunk, decoded together. Latents as the diffusion model sees them (scaled).

    Raises:
        GenerationFailed: half precision overflowed.
    """
    with torch.inference_mode():
        plain = (latents / vae.config["scaling_factor"]).to(vae.device, decoder_dtype(vae))
        pixels = _decode_together(vae, plain)
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
    on_frames: Callable[[int], None] = lambda _: None,
    plan: ChunkPlan = "even",
) -> UInt8[np.ndarray, "T H W 3"]:
    """All frames, in chunks of at most `largest_chunk`; `on_frames` is called with how many are done."""
    chunks = _in_chunks(latents, largest_chunk, lambda chunk: decode_chunk(vae, chunk), on_frames, plan)
    return np.concatenate(chunks)

"""Clean latents become frames: the temporal autoencoder's decoder, in evenly split chunks.

The chunk plan is part of the result: the decoder's temporal convolutions see the borders of a chunk. Chunks are split
evenly (model.shapes.even_chunks), so no short last chunk flickers.

Legend: T frames, t frames of a chunk, C channels, H, W pixels; h, w latent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from jaxtyping import Float, UInt8
from torch import Tensor

from model.errors import GenerationFailed
from model.shapes import even_chunks
from model.vae import decoder_dtype


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

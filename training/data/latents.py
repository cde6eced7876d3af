"""What the denoiser reads of each clip, computed once by the frozen networks and kept.

Legend: T frames, C latent channels, D embedding width, S frame strides, H, W pixels; h, w latent.

For every clip: latents [T, C, h, w] float16 (the autoencoder's mode, unscaled), image embeddings [T, D] float32 and the
measured flow between frames t and t + stride for each stride, from which a clip's motion bucket follows. A cache folder
belongs to one pair of frozen networks, by the hash of their weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from model.conditioning import clip_input
from model.encoders import ImageEncoder
from model.vae import encode_mode
from training.config import ProgressCallback
from training.data.frames import Clip
from training.data.motion_bucket import measure_flow

Half = np.ndarray[Any, np.dtype[np.float16]]
Single = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class LatentClip:
    """A clip as the denoiser's training sees it; `flow[stride][t]` is in short sides a second."""

    clip: Clip
    latents: Half
    embeds: Single
    flow: dict[int, Single]


def weights_hash(*networks: nn.Module) -> str:
    """First 12 hex digits of `weights_digest`."""
    return weights_digest(*networks)[:12]


def weights_digest(*networks: nn.Module) -> str:
    """SHA-256 over the networks' parameters, in hex."""
    digest = hashlib.sha256()
    for network in networks:
        for name, p in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(p.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def encode_clips(
    clips: list[Clip],
    vae: AutoencoderKLTemporalDecoder,
    vision: ImageEncoder | None,
    cache: Path,
    strides: tuple[int, ...],
    report: ProgressCallback = lambda *_: None,
) -> list[LatentClip]:
    """Latents, embeddings and flows of the clips, from the cache or computed into it.

    Args:
        vae: encodes them, on the device where it is.
        vision: reads the pictures, on the same device; None where no embeddings are wanted, which are then of width 0.
    """
    networks = [vae.encoder] if vision is None else [vae.encoder, vision.network]
    folder = cache / f"latents-{weights_hash(*networks)}"
    folder.mkdir(parents=True, exist_ok=True)
    out: list[LatentClip] = []
    for index, clip in enumerate(clips):
        own_strides = (1,) if clip.item.kind == "move" else strides
        cached = folder / f"{clip.item.id}-{clip.frames.shape[1]}x{clip.frames.shape[2]}.npz"
        if not cached.exists():
            latents, embeds = _encode(clip, vae, vision)
            flows = {f"flow{stride}": _pair_flows(clip, stride) for stride in own_strides}
            partial = cached.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.savez(stream, allow_pickle=False, latents=latents, embeds=embeds, **flows)
            partial.replace(cached)
        with np.load(cached) as data:
            flow = {stride: data[f"flow{stride}"] for stride in own_strides}
            out.append(LatentClip(clip, data["latents"], data["embeds"], flow))
        report("encoding latents", index + 1, len(clips))
    return out


def to_pixels(frames: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """[T, H, W, 3] uint8 to [T, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def _encode(clip: Clip, vae: AutoencoderKLTemporalDecoder, vision: ImageEncoder | None) -> tuple[Half, Single]:
    latents: list[Tensor] = []
    embeds: list[Tensor] = []
    for first in range(0, len(clip.frames), 16):
        pixels = to_pixels(clip.frames[first : first + 16]).to(vae.device)
        latents.append(encode_mode(vae, pixels).half().cpu())
        if vision is None:
            embeds.append(torch.zeros(len(pixels), 0))
        else:
            embeds.append(vision.network(clip_input(pixels, vision.mean, vision.std)).image_embeds.cpu())
    return torch.cat(latents).numpy(), torch.cat(embeds).numpy()


def _pair_flows(clip: Clip, stride: int) -> Single:
    fps = clip.item.fps / stride
    pairs = range(len(clip.frames) - stride)
    return np.array([measure_flow(clip.frames[[t, t + stride]], fps) for t in pairs], np.float32)

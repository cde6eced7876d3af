"""The linear map from latents to colours that previews are drawn with: least squares on training footage.

Legend: N latent cells, C latent channels.
"""

from __future__ import annotations

import numpy as np

from model.shapes import VAE_STRIDE
from training.data.latents import LatentClip

_CELLS = 50_000


def fit_latent_colours(clips: list[LatentClip], scaling_factor: float) -> dict[str, list[object]]:
    """What a checkpoint's sidecar names `latent_colours`: weights [C][3] and bias [3].

    The target of a latent cell is the mean colour, in [-1, 1], of the pixels it stands for.

    Args:
        clips: frames with their latents, unscaled.
        scaling_factor: of the autoencoder, since previews are drawn from scaled latents.
    """
    latents = np.concatenate([_cells(clip) for clip in clips]) * scaling_factor
    colours = np.concatenate([_colours(clip) for clip in clips])
    every = max(1, len(latents) // _CELLS)
    design = np.concatenate([latents[::every], np.ones((len(latents[::every]), 1))], axis=1)
    found, *_ = np.linalg.lstsq(design, colours[::every], rcond=None)
    return {"weights": found[:-1].round(5).tolist(), "bias": found[-1].round(5).tolist()}


def _cells(clip: LatentClip) -> np.ndarray:
    """[N, C]: one frame's latents."""
    cells: np.ndarray = clip.latents[0].astype(np.float64).transpose(1, 2, 0).reshape(-1, clip.latents.shape[1])
    return cells


def _colours(clip: LatentClip) -> np.ndarray:
    """[N, 3]: the mean colour under each cell of the same frame."""
    frame = clip.clip.frames[0].astype(np.float64) / 127.5 - 1
    height, width = frame.shape[0] // VAE_STRIDE, frame.shape[1] // VAE_STRIDE
    blocks = frame.reshape(height, VAE_STRIDE, width, VAE_STRIDE, 3)
    colours: np.ndarray = blocks.mean(axis=(1, 3)).reshape(-1, 3)
    return colours

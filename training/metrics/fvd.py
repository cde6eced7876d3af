"""Frechet video distance, over the logits of an I3D network the user has (Unterthiner et al. 2018, arXiv 1812.01717).

The weights are a TorchScript file with the interface in common use: it takes [N, 3, T, 224, 224] in [-1, 1] and the
keywords `rescale`, `resize` and `return_features`, and gives 400 numbers a clip. They are nobody's to ship; name the
file with `--i3d`, and its hash goes into the protocol, so that distances by two networks are never compared.

The distance is that of all features, as published: it needs thousands of clips to settle, and its value depends on how
many. `frechet`, over projected features, is the one to read for a few dozen.

Legend: N clips, T frames, H, W pixels, D features.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from model.errors import DataError
from training.metrics.frechet import frechet_distance

Frames = np.ndarray[Any, np.dtype[np.uint8]]
Array = np.ndarray[Any, np.dtype[np.float64]]
Features = Callable[[Frames], Array]
Report = Callable[[str, int, int], None]

SIDE = 224
SHORTEST = 9
"""Frames that I3D needs, at least."""


def protocol(weights: Path) -> dict[str, str]:
    """How FVD was taken with this file."""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {
        "fvd": (
            "Frechet distance of I3D logits between the generated and the real held-out clips, all their features, "
            f"frames resized to {SIDE} x {SIDE} (bilinear). It shrinks as clips are added: compare equal counts only. "
            f"Network: SHA-256 {digest}."
        )
    }


def i3d_features(weights: Path) -> Features:
    """What describes a clip, [T, H, W, 3] to [D], by the TorchScript network in a file.

    Raises:
        DataError: the file is no TorchScript, or does not answer as I3D does; or, from what is returned, a clip has
            fewer than 9 frames.
    """
    try:
        with warnings.catch_warnings():
            # torch deprecates the format; the I3D files in use are of it, and torch's successor cannot read them.
            warnings.filterwarnings("ignore", "`torch.jit.load`", DeprecationWarning)
            network = torch.jit.load(str(weights), map_location="cpu").eval()
    except RuntimeError as error:
        raise DataError(f"{weights} is no TorchScript network ({_first_line(error)}); FVD takes I3D as one") from error

    def described(clip: Frames) -> Array:
        if len(clip) < SHORTEST:
            raise DataError(f"FVD takes clips of {SHORTEST} frames or more, not {len(clip)}")
        pixels = torch.from_numpy(clip.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        try:
            with torch.inference_mode():
                found = network(pixels.transpose(0, 1)[None], rescale=False, resize=False, return_features=True)
        except RuntimeError as error:
            raise DataError(f"{weights} does not take a clip as I3D does: {_first_line(error)}") from error
        return np.asarray(found[0].double().numpy())

    return described


def video_distance(
    real: Sequence[Frames], sides: Mapping[str, Sequence[Frames]], features: Features, report: Report
) -> dict[str, Any]:
    """FVD of each side's clips to the real ones."""

    def described(name: str, clips: Sequence[Frames]) -> Array:
        rows = []
        for done, clip in enumerate(clips):
            report(f"I3D features of {name}", done, len(clips))
            rows.append(features(clip))
        return np.stack(rows)

    seen = described("real", real)
    figure: dict[str, Any] = {side: frechet_distance(seen, described(side, clips)) for side, clips in sides.items()}
    return figure | {"clips": len(real)}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

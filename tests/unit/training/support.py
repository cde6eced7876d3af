"""Small clips made on the spot: a bright square that moves over a textured ground."""

from __future__ import annotations

import numpy as np

from training.data.frames import Clip
from training.data.starter import Item


def moving_square(
    name: str, frames: int = 30, height: int = 64, width: int = 64, speed: int = 1, seed: int = 0
) -> Clip:
    """A clip [T, H, W, 3]; the square goes `speed` pixels a frame to the right."""
    ground = np.random.default_rng(seed).integers(0, 90, (height // 8, width // 8, 3), dtype=np.uint8)
    ground = ground.repeat(8, 0).repeat(8, 1)
    out = np.repeat(ground[None], frames, 0)
    for t in range(frames):
        x = (8 + speed * t) % (width - 16)
        out[t, 20:36, x : x + 16] = (230, 200, 60)
    item = Item(name, "shot", f"{name}.mp4", f"source-{name}", 0.0, frames / 24, frames, 24.0, "train")
    return Clip(item, out)

"""The preview's map is found again where colours are linear in the latents."""

from __future__ import annotations

import numpy as np

from training.data.frames import Clip
from training.data.latents import LatentClip
from training.data.starter import Item
from training.release import fit_latent_colours


def test_a_linear_map_is_found_again() -> None:
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(5, 3)) / 10, np.array([0.1, -0.1, 0.0])
    latents = rng.normal(size=(1, 5, 8, 16)).astype(np.float16)
    colours = np.einsum("tchw,cd->thwd", 0.5 * latents.astype(np.float64), weights) + bias
    frames = ((colours + 1) * 127.5).round().clip(0, 255).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    item = Item.__new__(Item)  # only the pixels matter here
    clip = LatentClip(Clip(item, frames), latents, np.zeros((1, 2), np.float32), {})
    found = fit_latent_colours([clip], scaling_factor=0.5)
    assert np.allclose(found["weights"], weights, atol=5e-3)
    assert np.allclose(found["bias"], bias, atol=5e-3)

"""Decoding in strips against decoding at once: the same numbers, at the borders of strips as elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load
from model.media.image import fit_picture, open_picture
from model.memory.tiled_decode import enable_tiled_decoding
from model.optimized.fused_blocks import fuse
from model.presets import preset
from model.sources.source import find
from model.vae import build_vae, decode_chunk, encode_mode


@pytest.mark.parametrize(("rows", "fused"), [(16, False), (10, True), (1000, True)])
def test_a_random_decoder_gives_the_same_in_strips(rows: int, fused: bool) -> None:
    torch.manual_seed(0)
    vae = build_vae(preset("tiny")).eval()
    for name, weight in vae.named_parameters():  # blends and offsets other than their first values
        if "mix_factor" in name or name.endswith("bias"):
            torch.nn.init.normal_(weight)
    if fused:
        fuse(vae)
    latents = torch.randn(3, 4, 7, 5)
    with torch.inference_mode():
        whole = vae.decode(latents, num_frames=3).sample
        enable_tiled_decoding(vae, rows)
        tiled = vae.decode(latents, num_frames=3).sample
    assert whole.shape == tiled.shape == (3, 3, 56, 40)
    assert float((whole - tiled).abs().max()) < 1e-4 * float(whole.abs().max())  # more than 80 dB


@pytest.mark.slow
def test_a_photograph_has_no_seams(root: Path) -> None:
    """The trained decoder on a real picture, 14 frames' worth of movement: far above 40 dB at every row."""
    checkpoint = load(find("mini-image-to-video"))
    picture = fit_picture(open_picture((root / "docs" / "assets" / "still.jpg").read_bytes()), 128, 224, "crop")
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        moving = torch.cat([pixels.roll(shift, -1) for shift in (0, 4, 8)])
        latents = encode_mode(checkpoint.vae, moving) * checkpoint.scaling_factor
        fuse(checkpoint.vae)
        whole = decode_chunk(checkpoint.vae, latents).astype(np.float64)
        enable_tiled_decoding(checkpoint.vae, 32)
        tiled = decode_chunk(checkpoint.vae, latents).astype(np.float64)
    rows = ((whole - tiled) ** 2).mean((0, 2, 3))
    worst = 10 * np.log10(255**2 / max(float(rows.max()), 1e-12))
    assert worst > 60.0, f"{worst:.1f} dB"

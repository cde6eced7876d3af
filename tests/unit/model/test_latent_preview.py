"""Previews: exact where the map is exact, and drawn from the sample that the solver implies."""

from __future__ import annotations

import io

import torch
from PIL import Image

from model.denoiser import Conditioning
from model.latent_preview import LatentColours, denoised, preview_jpeg
from model.sampling.row import BatchKey, Row
from model.shapes import LatentShape


def row() -> Row:
    told = Conditioning(torch.zeros(1, 2), torch.zeros(2, 3, 2, 2), torch.zeros(3))
    noise = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return Row.begin(
        BatchKey("m@1", LatentShape(2, 3, 2, 2), "float32"),
        solver="euler",
        sigmas=(10.0, 3.0, 0.5, 0.0),
        noise=noise,
        conditioning=told,
        scale=torch.ones(2),
        seed=0,
    )


def test_the_denoised_sample_is_the_one_the_slope_points_to() -> None:
    before, clean = row(), torch.full((2, 3, 2, 2), 0.25)
    after = before.advanced((before.latents - clean) / 10.0)
    assert torch.allclose(denoised(before, after), clean, atol=1e-6)


def test_colours_are_the_map_clamped() -> None:
    colours = LatentColours(torch.eye(3), torch.tensor([0.0, 0.5, 0.0]))
    latents = torch.tensor([-1.0, 0.5, 3.0]).reshape(1, 3, 1, 1)
    assert colours(latents).reshape(-1).tolist() == [0, 255, 255]


def test_a_strip_has_four_frames_of_the_clip() -> None:
    colours = LatentColours(torch.eye(3), torch.zeros(3))
    with Image.open(io.BytesIO(preview_jpeg(colours, torch.zeros(14, 3, 16, 28)))) as strip:
        assert strip.size == (4 * 28 * 4, 16 * 4)
    with Image.open(io.BytesIO(preview_jpeg(colours, torch.zeros(2, 3, 16, 28)))) as strip:
        assert strip.size == (2 * 28 * 4, 16 * 4)

"""Compiled blocks: the numbers of the plain network, and nothing compiled anew for another number of places."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from model.backends.compiled import CompiledDenoiser
from model.backends.protocol import Cores
from model.presets import UNetSize, preset
from model.rewrites import fold_blends, relative_difference, rewrite_exactly
from model.tasks import task
from model.unet import build_unet

TOLERANCE = 1e-5
"""Largest difference over largest magnitude, float32 on a CPU."""

pytestmark = [
    pytest.mark.full,  # minutes of a C++ compiler
    pytest.mark.timeout(900),
    pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # inside torch's compiler
]


def told(places: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(places)
    return (
        torch.randn(places, 3, 4, 4, 4, generator=g),
        torch.linspace(-1.2, 1.6, places + 1)[1:],
        torch.randn(places, 1, 32, generator=g),
        torch.randn(places, 3, 4, 4, 4, generator=g),
        torch.rand(places, 3, generator=g),
    )


def test_other_numbers_of_places_compile_nothing_new(caplog: pytest.LogCaptureFixture) -> None:
    """One level of 32 channels: few kernels to compile. The tiny preset's own is in test_backends."""
    caplog.set_level("ERROR", "torch.__trace")  # torch writes it for whoever listens, as pytest does, and it takes long
    torch.manual_seed(0)
    size = dataclasses.replace(preset("tiny"), unet=UNetSize((32,), (2,), 1, 32), num_frames=3)
    plain = build_unet(size, task("image-to-video")).eval().requires_grad_(False)
    ours = copy.deepcopy(plain)
    rewrite_exactly(ours, context_tokens=1)
    fold_blends(ours)
    denoiser = CompiledDenoiser(ours, Cores(1))
    graphs = []
    for places in (2, 3, 1, 4):
        latents, timestep, context, concat, vector = inputs = told(places)
        before = counters["stats"]["unique_graphs"]
        answer = denoiser(*inputs)
        graphs.append(counters["stats"]["unique_graphs"] - before)
        with torch.inference_mode():
            expected = plain(torch.cat([latents, concat], 2), timestep, context, added_time_ids=vector).sample
        assert relative_difference(answer, expected) < TOLERANCE, places
    assert graphs[0] > 0
    assert graphs[1:] == [0, 0, 0]

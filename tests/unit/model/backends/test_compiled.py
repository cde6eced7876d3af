"""Compiled blocks: the numbers of the plain network, and nothing compiled anew for another number of places.

Run as a program, this file measures; the test runs it so, since tests check the types of what they import, and the
checks' own state would be compiled into the blocks.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from model.backends.compiled import CompiledDenoiser
from model.denoiser import CpuThreads, DenoiserInputs
from model.optimized.fused_blocks import fuse
from model.optimized.rewrites import relative_difference
from model.presets import UNetSize, preset
from model.tasks import task
from model.unet import build_unet

TOLERANCE = 1e-5
"""Largest difference over largest magnitude, float32 on a CPU."""

pytestmark = [
    pytest.mark.full,  # minutes of a C++ compiler
    pytest.mark.timeout(900),
    pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"),
]


def told(places: int) -> DenoiserInputs:
    g = torch.Generator().manual_seed(places)
    return DenoiserInputs(
        torch.randn(places, 3, 4, 4, 4, generator=g),
        torch.linspace(-1.2, 1.6, places + 1)[1:],
        torch.randn(places, 1, 32, generator=g),
        torch.randn(places, 3, 4, 4, 4, generator=g),
        torch.rand(places, 3, generator=g),
    )


def measured() -> list[tuple[int, int, float]]:
    """Places of a call, graphs it compiled, and how far its answer is from the plain network's.

    One level of 32 channels: few kernels to compile. The tiny preset's own is in test_backends.
    """
    torch.manual_seed(0)
    size = dataclasses.replace(preset("tiny"), unet=UNetSize((32,), (2,), 1, 32), num_frames=3)
    plain = build_unet(size, task("image-to-video")).eval().requires_grad_(False)
    ours = copy.deepcopy(plain)
    fuse(ours)
    denoiser = CompiledDenoiser(ours, CpuThreads(1))
    found = []
    for places in (2, 3, 1, 4):
        inputs = told(places)
        latents, timestep, context, concat, vector = inputs.as_tuple()
        before = counters["stats"]["unique_graphs"]
        answer = denoiser(inputs)
        graphs = counters["stats"]["unique_graphs"] - before
        with torch.inference_mode():
            expected = plain(torch.cat([latents, concat], 2), timestep, context, added_time_ids=vector).sample
        found.append((places, graphs, relative_difference(answer, expected)))
    return found


def test_other_numbers_of_places_compile_nothing_new(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        check=True,
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert [graphs > 0 for _, graphs, _ in found] == [True, False, False, False]
    assert all(difference < TOLERANCE for _, _, difference in found)


if __name__ == "__main__":
    print(json.dumps(measured()))

"""Compiled blocks: the numbers of the plain network, and nothing compiled anew for another batch size or another LoRA.

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
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from model.backends.compiled import CompiledDenoiser
from model.denoiser import CpuThreads, DenoiserInputs, TorchDenoiser
from model.lora.catalog import LoraUse
from model.lora.merge import LoraDenoiser
from model.lora.weights import read_lora
from model.optimized.fused_blocks import fuse
from model.optimized.rewrites import relative_difference
from model.presets import UNetSize, preset
from model.tasks import task
from model.unet import build_unet
from tests.support.loras import drawn_lora

TOLERANCE = 1e-5
"""Largest difference over largest magnitude, float32 on a CPU."""

pytestmark = [
    pytest.mark.slow,  # a minute of a C++ compiler
    pytest.mark.timeout(900),
    pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"),
]


def inputs_of(places: int) -> DenoiserInputs:
    g = torch.Generator().manual_seed(places)
    return DenoiserInputs(
        torch.randn(places, 3, 4, 4, 4, generator=g),
        torch.linspace(-1.2, 1.6, places + 1)[1:],
        torch.randn(places, 1, 32, generator=g),
        torch.randn(places, 3, 4, 4, 4, generator=g),
        torch.rand(places, 3, generator=g),
    )


def networks() -> tuple[Any, Any, CompiledDenoiser]:
    """The plain network, and the one that is compiled, with its denoiser.

    One level of 32 channels: few kernels to compile. The tiny preset's own is in test_backends.
    """
    torch.manual_seed(0)
    size = dataclasses.replace(preset("tiny"), unet=UNetSize((32,), (2,), 1, 32), num_frames=3)
    plain = build_unet(size, task("image-to-video")).eval().requires_grad_(False)
    ours = copy.deepcopy(plain)
    fuse(ours)
    return plain, ours, CompiledDenoiser(ours, CpuThreads(1))


def batch_sizes(plain: Any, denoiser: CompiledDenoiser) -> list[tuple[int, int, float]]:
    """Places of a call, graphs it compiled, and how far its answer is from the plain network's."""
    found = []
    for places in (2, 3, 1, 4):
        inputs = inputs_of(places)
        latents, timestep, context, concat, vector = inputs.as_tuple()
        before = counters["stats"]["unique_graphs"]
        answer = denoiser(inputs)
        graphs = counters["stats"]["unique_graphs"] - before
        with torch.inference_mode():
            expected = plain(torch.cat([latents, concat], 2), timestep, context, added_time_ids=vector).sample
        found.append((places, graphs, relative_difference(answer, expected)))
    return found


def switches(folder: Path, plain: Any, ours: Any, inner: CompiledDenoiser) -> list[dict[str, Any]]:
    """Calls under one LoRA after another: what each compiled, and its answer against eager torch and against itself."""
    entries = [drawn_lora(folder / f"{name}.safetensors", plain, seed) for seed, name in enumerate("ab")]
    eager = copy.deepcopy(plain)
    fuse(eager)
    with_eager = LoraDenoiser(
        TorchDenoiser(eager, CpuThreads(1)), eager, {one.name: read_lora(one, eager) for one in entries}
    )
    compiled = LoraDenoiser(inner, ours, {one.name: read_lora(one, ours) for one in entries})
    inputs, found = inputs_of(2), []
    first: dict[LoraUse | None, torch.Tensor] = {None: inner(inputs)}
    a, b = (LoraUse(one.name, one.version, 1.0) for one in entries)
    for use in (a, b, LoraUse(a.name, a.version, -0.5), None, a, b, None):
        before = counters["stats"]["unique_graphs"]
        for one in (compiled, with_eager):
            one.set_lora(use)
        answer = compiled(inputs)
        alone = torch.cat([compiled(slot) for slot in inputs.split(1)])
        found.append(
            {
                "graphs": counters["stats"]["unique_graphs"] - before,
                "from eager": relative_difference(answer, with_eager(inputs)),
                "from none": relative_difference(answer, first[None]),
                "same bits as before": torch.equal(answer, first.setdefault(use, answer)),
                "same bits as alone": torch.equal(answer, alone),
            }
        )
    return found


@pytest.fixture(scope="module")
def measured(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What this file prints as a program."""
    done = subprocess.run(
        [sys.executable, "-P", __file__, str(tmp_path_factory.mktemp("loras"))],
        check=True,
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_other_numbers_of_places_compile_nothing_new(measured: dict[str, Any]) -> None:
    found = measured["batch sizes"]
    assert [graphs > 0 for _, graphs, _ in found] == [True, False, False, False]
    assert all(difference < TOLERANCE for _, _, difference in found)


def test_a_switched_lora_compiles_nothing_and_leaves_no_trace(measured: dict[str, Any]) -> None:
    found = measured["switches"]
    assert [one["graphs"] for one in found] == [0] * 7
    assert all(one["from eager"] < TOLERANCE for one in found)
    assert [one["from none"] > 0.01 for one in found] == [True, True, True, False, True, True, False]
    assert [one["from none"] == 0 for one in found] == [False, False, False, True, False, False, True]
    assert all(one["same bits as before"] and one["same bits as alone"] for one in found)


if __name__ == "__main__":
    plain, ours, denoiser = networks()
    print(
        json.dumps(
            {
                "batch sizes": batch_sizes(plain, denoiser),
                "switches": switches(Path(sys.argv[1]), plain, ours, denoiser),
            }
        )
    )

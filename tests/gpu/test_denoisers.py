"""On a GPU: every kernel at svd-xt's shapes, every backend and its graphs, and no wait for the host within a step."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import BOUNDS, CASES, DTYPES, Case, worst
from benchmarks.svd_xt.bench import Bench
from model.backends.registry import LORA_BACKENDS, make_denoiser
from model.catalog import ModelEntry
from model.checkpoint import load
from model.denoiser import BackendOptions, Conditioning, CpuThreads, DenoiserInputs
from model.lora.catalog import LoraUse
from model.lora.merge import LoraDenoiser
from model.lora.weights import read_lora
from model.optimized.attention import KERNELS, usable
from model.optimized.fp8 import CAPABILITY
from model.optimized.kernels.block_ops import NAMES
from model.optimized.kernels.choice import trials
from model.optimized.rewrites import relative_difference
from model.presets import preset
from model.sampling.row import BatchKey, Row
from model.sampling.sampler import advance
from model.sampling.solvers import karras_sigmas
from model.shapes import LatentShape
from model.vae import decode_clip
from tests.support.loras import drawn_lora

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

LARGE = tuple(
    Case(case.kernel, shape, "svd-xt's first level", case.run)
    for case, shape in (
        (next(one for one in CASES if one.kernel == "group-norm"), (4, 9216, 320, 32)),
        (next(one for one in CASES if one.kernel == "layer-norm"), (25 * 9216, 320, 25, 9216)),
        (next(one for one in CASES if one.kernel == "geglu"), (9216, 2560)),
        (next(one for one in CASES if one.kernel == "blend"), (25 * 9216 * 320,)),
        (next(one for one in CASES if one.kernel == "temporal-attention"), (1, 25, 9216, 320, 5)),
    )
)
HALF = 2e-2
"""Largest difference over largest magnitude between two ways of computing a network in half precision."""


FP8 = 0.15
"""The same for 8-bit floats against bfloat16; 0.07 as simulated on a CPU."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=lambda case: case.name)
def test_a_kernel_is_as_near_to_float64_as_its_dtype_allows(
    case: Case, dtype: torch.dtype, device: torch.device
) -> None:
    assert worst(case, dtype, device) < BOUNDS[dtype]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_measured_at_the_start_runs(name: str, device: torch.device) -> None:
    from model.optimized.kernels.block_ops import BlockOps

    run = trials((5, 64, 64), 2, device, torch.float16)[name]
    with torch.inference_mode():
        assert relative_difference(run(BlockOps((name,))).float(), run(BlockOps(())).float()) < HALF


def inputs(slots: int, frames: int, side: int, device: torch.device) -> DenoiserInputs:
    g = torch.Generator().manual_seed(10 * slots + side)
    clip = torch.randn(slots, frames, 4, side, side, generator=g)
    numbers = (torch.linspace(-1, 1, slots), torch.randn(slots, 1, 32, generator=g), clip.flip(0))
    return DenoiserInputs(clip, *numbers, torch.rand(slots, 3, generator=g)).to(device)


def denoiser(entry: ModelEntry, device: torch.device, backend: str, **options: Any) -> Any:
    checkpoint = load(entry, device=device, dtype=torch.float16)
    return make_denoiser(backend, checkpoint, CpuThreads(1), BackendOptions(**options))


@pytest.mark.parametrize("backend", ["torch", "torch-compiled", "torch-graphed"])
def test_8_bit_floats_are_near_bfloat16(entry: ModelEntry, device: torch.device, backend: str) -> None:
    if torch.cuda.get_device_capability(device) < CAPABILITY or not importlib.util.find_spec("torchao"):
        pytest.skip("no 8-bit matrix products, or [fp8] is not installed")
    given, answers = inputs(2, 6, 16, device), []
    for fp8 in (False, True):
        checkpoint = load(entry, device=device, dtype=torch.bfloat16)
        ours = make_denoiser(backend, checkpoint, CpuThreads(1), BackendOptions(fp8=fp8, kernels="none"))
        answers.append(ours(given))
    assert 0 < relative_difference(answers[1], answers[0]) < FP8


CALLS = ((2, 6, 8), (1, 6, 8), (2, 6, 16), (2, 6, 8), (4, 3, 8), (1, 6, 8), (2, 6, 16))
"""Slots, frames and side of calls in turn: each shape again after others, as a graph of another shape was replayed."""


@pytest.mark.parametrize("backend", ["torch", "torch-compiled", "torch-graphed"])
@pytest.mark.parametrize("kernels", ["none", ",".join(NAMES)], ids=["torch", "kernels"])
def test_every_backend_gives_the_same_at_alternating_shapes(
    entry: ModelEntry, device: torch.device, backend: str, kernels: str
) -> None:
    plain = load(entry, device=device).unet.eval()
    ours = denoiser(entry, device, backend, kernels=kernels)
    for slots, frames, side in CALLS:
        given = inputs(slots, frames, side, device)
        sample = torch.cat([given.latents, given.concat], 2)
        with torch.inference_mode():
            expected = plain(sample, given.timestep, given.context, added_time_ids=given.vector, return_dict=False)[0]
        assert relative_difference(ours(given), expected) < HALF


@pytest.mark.parametrize("backend", sorted(LORA_BACKENDS - {"torch"}))
def test_a_lora_is_switched_without_a_trace(
    entry: ModelEntry, device: torch.device, tmp_path: Path, backend: str
) -> None:
    """Compiled blocks and recorded graphs against eager torch, under one LoRA after another and under none."""
    files = [drawn_lora(tmp_path / f"{name}.safetensors", load(entry).unet, seed) for seed, name in enumerate("ab")]
    adaptable: list[LoraDenoiser] = []
    for name in (backend, "torch"):
        checkpoint = load(entry, device=device, dtype=torch.float16)
        inner = make_denoiser(name, checkpoint, CpuThreads(1), BackendOptions(kernels="none"))
        loras = {file.name: read_lora(file, checkpoint.unet) for file in files}
        adaptable.append(LoraDenoiser(inner, checkpoint.unet, loras))
    ours, eager = adaptable
    given = inputs(2, 6, 8, device)
    a, b = (LoraUse(file.name, file.version, 1.0) for file in files)
    answers: dict[LoraUse | None, Tensor] = {}
    for use in (None, a, b, None, a):
        for one in adaptable:
            one.set_lora(use)
        answer = ours(given)
        assert relative_difference(answer, eager(given)) < HALF
        assert torch.equal(answers.setdefault(use, answer), answer)
    assert min(relative_difference(answers[None], answers[use]) for use in (a, b)) > HALF


@pytest.mark.parametrize("attention", [name for name in KERNELS if name != "math"])
def test_every_attention_kernel_gives_the_same(entry: ModelEntry, device: torch.device, attention: str) -> None:
    if attention not in usable((2, 2, 256, 16), device, torch.float16):
        pytest.skip(f"{attention} does not run here")
    given = inputs(2, 6, 16, device)
    plain = denoiser(entry, device, "torch", attention="sdpa", kernels="none")
    assert relative_difference(denoiser(entry, device, "torch", attention=attention)(given), plain(given)) < HALF


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ["torch", "torch-graphed"])
def test_a_step_never_waits_for_the_device(entry: ModelEntry, device: torch.device, backend: str) -> None:
    ours, latent = denoiser(entry, device, backend), LatentShape(6, 4, 8, 8)
    with torch.device(device):
        conditioning = Conditioning(torch.zeros(1, 32), torch.zeros(6, 4, 8, 8), torch.zeros(3))
        noise, scale = torch.zeros(latent.as_tuple()), torch.full((6,), 2.0)
    row = Row.begin(
        BatchKey("tiny", latent, "float16"),
        solver="euler",
        sigmas=karras_sigmas(6, 0.02, 80.0),
        noise=noise,
        conditioning=conditioning,
        scale=scale,
        seed=0,
    )
    rows = advance(ours, [row])  # kernels are chosen, and a graph is recorded
    with no_waiting():
        for _ in range(3):
            rows = advance(ours, rows)
    torch.cuda.synchronize(device)
    assert bool(rows[0].latents.isfinite().all())


def test_the_decoder_with_kernels_is_the_unmodified_one(device: torch.device) -> None:
    from model.optimized.fused_blocks import fuse
    from model.optimized.kernels.block_ops import BlockOps

    bench = Bench("tiny", device, torch.float32, 2, 1)
    ours = copy.deepcopy(bench.plain.vae)
    fuse(ours, ops=BlockOps())
    latents = torch.randn(3, preset("tiny").vae.latent_channels, 8, 8, device=device)
    with torch.inference_mode():
        frames: list[Tensor] = [decode_clip(vae, latents, 3) for vae in (ours, bench.plain.vae)]
    assert relative_difference(*frames) < 1e-3  # TF32 convolutions

"""Performance by counting, which no busy machine disturbs: calls, waits for the device, operations, bytes, recompiles.

Steps run on torch's meta device: whatever would read a number back to the host, or bring one from it, is seen there.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.backends.compiled import compile_blocks
from model.denoiser import Conditioning, DenoiserInputs
from model.optimized.fused_blocks import fuse
from model.optimized.kernels.block_ops import BlockOps
from model.presets import UNetSize, preset
from model.sampling.row import BatchKey, Row
from model.sampling.sampler import advance, sample
from model.sampling.solvers import karras_sigmas
from model.shapes import LatentShape
from model.tasks import task
from model.unet import build_unet

LATENT = LatentShape(preset("tiny").num_frames, 4, 8, 8)


COPIES = frozenset({"copy_", "clone", "_to_copy", "cat", "stack", "repeat", "index_select"})
"""Operations that move numbers and change none."""


class Operations(TorchDispatchMode):
    """Counts operations, bytes of what they make, and bytes that they only copy."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.made = 0
        self.copied = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        self.names[name] += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and name in COPIES:
                self.copied += leaf.nbytes
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self.made += leaf.untyped_storage().nbytes()
        return result


class Calls:
    """A denoiser that counts, and answers with its input."""

    def __init__(self) -> None:
        self.places: list[int] = []

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        self.places.append(inputs.batch_size)
        return inputs.latents.clone()


def row(device: str = "cpu", *, steps: int = 4, scale: float = 2.0, solver: Any = "euler") -> Row:
    with torch.device(device):
        conditioning = Conditioning(
            torch.zeros(1, 32), torch.zeros(LATENT.num_frames, 4, LATENT.height, LATENT.width), torch.zeros(3)
        )
        noise = torch.zeros(LATENT.as_tuple())
    return Row.begin(
        BatchKey("tiny", LATENT, "float32"),
        solver=solver,
        sigmas=karras_sigmas(steps, 0.02, 80.0),
        noise=noise,
        conditioning=conditioning,
        scale=torch.full((LATENT.num_frames,), scale),
        seed=0,
    )


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 4), ("dpmpp-2m", 4), ("heun", 7)])
def test_a_step_is_one_call_of_two_places(solver: str, evaluations: int) -> None:
    guided, plain = Calls(), Calls()
    sample(guided, row(solver=solver))
    sample(plain, row(solver=solver, scale=1.0))  # every frame's scale is 1: the unconditional half is left out
    assert guided.places == [2] * evaluations
    assert plain.places == [1] * evaluations


def test_rows_share_a_call_and_an_interval_halves_it() -> None:
    denoiser, first, second = Calls(), row(), row(steps=6)
    narrow = replace(row(), guidance_interval=(0.0, 0.03))  # its last level alone
    advance(denoiser, [first, second, narrow, row(scale=1.0)])
    assert denoiser.places == [2 + 2 + 1 + 1]


WAITS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "_to_copy")
"""Operations that wait for the device, or bring data to it or from it."""


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp-2m"])
def test_a_step_waits_for_nothing(solver: str) -> None:
    rows = [row("meta", solver=solver), row("meta", scale=1.0, steps=5)]
    with Operations() as seen:
        for _ in range(3):
            rows = advance(Calls(), rows)
    assert not {name: seen.names[name] for name in WAITS if seen.names[name]}
    assert all(one.latents.device.type == "meta" for one in rows)


def test_a_step_s_own_work_is_a_few_operations() -> None:
    """Beside the denoiser: what stacks, scales and guides. A bound, so that a loop over frames would be seen."""
    rows = [row("meta"), row("meta")]
    with Operations() as seen:
        advance(Calls(), rows)
    assert sum(seen.names.values()) < 110
    clip = LATENT.numel * 4
    assert seen.made < 32 * len(rows) * clip
    assert seen.copied < 10 * len(rows) * clip


@pytest.fixture(scope="module")
def networks() -> tuple[UNetSpatioTemporalConditionModel, UNetSpatioTemporalConditionModel]:
    """diffusers' own and ours, without numbers."""
    plain = build_unet(preset("tiny"), task("image-to-video"), device="meta").to("meta").eval()
    ours = copy.deepcopy(plain)
    fuse(ours)
    return plain, ours


def called(unet: UNetSpatioTemporalConditionModel, places: int) -> Operations:
    with torch.device("meta"):
        told = (torch.empty(places, LATENT.num_frames, 8, 8, 8), torch.empty(places), torch.empty(places, 1, 32))
        vector = torch.empty(places, 3)
    with torch.inference_mode(), Operations() as seen:
        unet(*told, added_time_ids=vector, return_dict=False)
    return seen


@pytest.mark.parametrize("places", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_call_takes_fewer_operations_and_less_memory_than_diffusers(networks: Any, places: int) -> None:
    theirs, ours = (called(unet, places) for unet in networks)
    assert sum(ours.names.values()) < 0.75 * sum(theirs.names.values())
    assert ours.made < 0.75 * theirs.made
    assert ours.copied <= theirs.copied
    assert ours.names["_to_copy"] <= theirs.names["_to_copy"]


@pytest.mark.slow
@pytest.mark.slow
def test_kernels_compile_nothing_new_for_another_size(caplog: pytest.LogCaptureFixture) -> None:
    """Traced and run on the meta device, where an operation of ours is its fake form."""
    caplog.set_level("ERROR", "torch.__trace")
    size = dataclasses.replace(preset("tiny"), unet=UNetSize((32,), (2,), 1, 32), num_frames=3)
    unet = build_unet(size, task("image-to-video"), device="meta").to("meta").eval().requires_grad_(False)
    fuse(unet, ops=BlockOps())
    compile_blocks(unet, backend="eager")
    graphs = []
    for places, side in ((2, 4), (3, 4), (2, 6), (5, 8)):
        before = counters["stats"]["unique_graphs"]
        with torch.device("meta"):
            told = (torch.empty(places, 3, 8, side, side), torch.empty(places), torch.empty(places, 1, 32))
            vector = torch.empty(places, 3)
        with torch.inference_mode():
            unet(*told, added_time_ids=vector, return_dict=False)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert graphs[0] > 0
    assert graphs[1:] == [0, 0, 0]


@pytest.mark.slow  # compiles for a quarter of a minute
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ops", [None, BlockOps(())], ids=["cpu", "gpu"])
def test_another_number_of_places_or_another_size_compiles_nothing_new(
    ops: BlockOps | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Traced by torch.compile and run eagerly, so that no C++ compiler is waited for; one place is its own case."""
    caplog.set_level("ERROR", "torch.__trace")  # torch writes it for whoever listens, as pytest does, and it takes long
    torch.manual_seed(0)
    size = dataclasses.replace(preset("tiny"), unet=UNetSize((32,), (2,), 1, 32), num_frames=3)
    unet = build_unet(size, task("image-to-video")).eval().requires_grad_(False)
    fuse(unet, ops=ops)
    assert compile_blocks(unet, backend="eager") > 0
    graphs = []
    for places, side in ((2, 4), (3, 4), (4, 4), (2, 6), (5, 8)):
        before = counters["stats"]["unique_graphs"]
        told = (torch.randn(places, 3, 8, side, side), torch.rand(places), torch.randn(places, 1, 32))
        with torch.inference_mode():
            unet(*told, added_time_ids=torch.rand(places, 3), return_dict=False)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert graphs[0] > 0
    assert graphs[1:] == [0, 0, 0, 0]

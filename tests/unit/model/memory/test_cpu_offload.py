"""CPU offload: networks are on the device while they are used, and leave it once their kernels are done."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch import nn

from model.denoiser import CpuThreads, DenoiserInputs, TorchDenoiser
from model.memory.cpu_offload import CpuOffload, offload_blocks
from model.optimized.fused_blocks import fuse
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from tests.support.cuda import FakeCuda, fake_cuda


class Network(nn.Module):
    """A network that notes where it goes."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def to(self, device: Any) -> Network:  # type: ignore[override]
        self.cuda.note(f"to {device}")
        return self


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda(monkeypatch)


def test_a_network_leaves_after_its_last_user_s_kernels(cuda: FakeCuda) -> None:
    offload, network = CpuOffload(torch.device("cuda:1")), Network(cuda)
    with offload.on_device(network):
        with offload.on_device(network):
            cuda.note("kernels of a second user")
        cuda.note("kernels of the first")
    done = [what for what, _, _ in cuda.calls]
    assert done[0] == "to cuda:1"
    assert done[-2:] == ["synchronize", "to cpu"]
    assert done.count("to cpu") == done.count("to cuda:1") == 1
    second = done.index("kernels of a second user")
    assert done[second + 1] == "synchronize"  # before it counts as gone
    assert {details["stream"] for _, details in cuda.of("synchronize")} == {"cuda:1"}


def test_a_network_leaves_after_an_error_too(cuda: FakeCuda) -> None:
    offload, network = CpuOffload(torch.device("cuda:1")), Network(cuda)
    with pytest.raises(KeyError), offload.on_device(network):
        raise KeyError
    assert [what for what, _, _ in cuda.calls][-2:] == ["synchronize", "to cpu"]


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """On a CPU blocks do not move: here an offloaded block's numbers are NaN, and come back in memory of their own.

    Returns:
        how many tensors were away at each offload.
    """
    waiting: dict[torch.Tensor, torch.Tensor] = {}
    counts: list[int] = []

    def tensors(group: ModuleGroup) -> list[torch.Tensor]:
        inside = [tensor for module in group.modules for tensor in (*module.parameters(), *module.buffers())]
        return [*inside, *group.parameters, *group.buffers]

    def offload(group: ModuleGroup) -> None:
        for tensor in tensors(group):
            if tensor not in waiting:
                waiting[tensor] = tensor.data.clone()
                tensor.data = torch.full_like(tensor.data, torch.nan)
        counts.append(len(waiting))

    def onload(group: ModuleGroup) -> None:
        for tensor in tensors(group):
            if tensor in waiting:
                tensor.data = waiting.pop(tensor)

    monkeypatch.setattr(ModuleGroup, "offload_", offload)
    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    return counts


@pytest.mark.parametrize("fused", [False, True])
def test_blocks_that_come_and_go_compute_the_same_numbers(away: list[int], fused: bool) -> None:
    """Group offload, bit for bit."""
    torch.manual_seed(0)
    resident = build_unet(preset("tiny"), task("image-to-video"), num_frames=3).eval().requires_grad_(False)
    latents, concat = torch.randn(2, 2, 3, 4, 8, 8)
    inputs = DenoiserInputs(latents, torch.tensor([-0.4, 1.1]), torch.randn(2, 1, 32), concat, torch.rand(2, 3))
    offloaded = copy.deepcopy(resident)
    for unet in (resident, offloaded) if fused else ():
        fuse(unet)
    wanted = _run(resident, inputs, fused)
    offload_blocks(offloaded, torch.device("cpu"))
    assert away[-1] > 0.5 * len(list(offloaded.parameters()))
    for _ in range(2):  # the second call finds the blocks away again
        assert torch.equal(_run(offloaded, inputs, fused), wanted)
    assert len(away) > 12 and away[-1] > 0.5 * len(list(offloaded.parameters()))


def _run(unet: Any, inputs: DenoiserInputs, fused: bool) -> torch.Tensor:
    """As it is served, or as diffusers computes it."""
    if fused:
        return TorchDenoiser(unet, CpuThreads(1))(inputs)
    latents, timestep, context, concat, vector = inputs.as_tuple()
    with torch.inference_mode():
        out: torch.Tensor = unet(torch.cat([latents, concat], 2), timestep, context, added_time_ids=vector).sample
    return out

"""CPU offload: networks are on the device while they are used, and leave it once their kernels are done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from model.memory.cpu_offload import CpuOffload
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

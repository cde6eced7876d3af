"""Attention kernels: chosen by name or by measurement, and refused with what runs here."""

from __future__ import annotations

import math

import pytest
import torch

from model.errors import InvalidRequest
from model.optimized.attention import KERNELS, choose, fastest, kernel, usable

CPU = torch.device("cpu")
SHAPE = (3, 2, 17, 8)


@pytest.mark.parametrize("name", list(KERNELS))
def test_a_kernel_that_runs_here_is_attention(name: str) -> None:
    if name not in usable(SHAPE, CPU, torch.float32):
        pytest.skip(f"{name} does not run on this CPU")
    torch.manual_seed(0)
    query, key, value = torch.randn(3, *SHAPE)
    weights = (query @ key.transpose(-1, -2) / math.sqrt(SHAPE[-1])).softmax(-1)
    assert torch.allclose(KERNELS[name](query, key, value), weights @ value, atol=1e-5)


def test_a_cpu_has_torch_s_own_and_no_gpu_s() -> None:
    found = usable(SHAPE, CPU, torch.float32)
    assert {"sdpa", "math"} <= set(found)
    assert not {"cudnn", "flash3"} & set(found)
    assert fastest(SHAPE, CPU, torch.float32) in found


def test_auto_is_torch_s_own_choice_where_nothing_may_be_measured() -> None:
    assert choose("auto", SHAPE, CPU, torch.float32, pinned=False) == "sdpa"
    assert choose("auto", SHAPE, torch.device("cuda"), torch.float16, pinned=True) == "sdpa"
    assert choose("math", SHAPE, CPU, torch.float32, pinned=True) == "math"


def test_what_does_not_run_is_told_with_what_does() -> None:
    with pytest.raises(InvalidRequest, match="cudnn does not run here on cpu in float32; these do: sdpa, math"):
        choose("cudnn", SHAPE, CPU, torch.float32, pinned=False)
    with pytest.raises(InvalidRequest, match="no attention kernel is called 'abacus'"):
        kernel("abacus")

"""Attention kernels: chosen by name or by measurement, and refused with what runs here."""

from __future__ import annotations

import math

import pytest
import torch

from model.errors import InvalidRequest
from model.optimized import attention as attention_module
from model.optimized.attention import (
    KERNELS,
    SHORT,
    AttentionDispatch,
    choose,
    fastest,
    kernel,
    projected_like_a_block,
    usable,
)

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


def test_choosing_runs_no_kernel_but_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size the math kernel's scores alone take over a GiB."""

    def never(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a kernel was run that nobody named")

    monkeypatch.setitem(KERNELS, "math", never)
    monkeypatch.setitem(KERNELS, "sdpa", never)
    full = (25, 5, 9216, 64)
    assert choose("sdpa", full, CPU, torch.float32, pinned=False) == "sdpa"
    assert choose("auto", full, CPU, torch.float32, pinned=False) == "sdpa"
    monkeypatch.setitem(KERNELS, "sdpa", attention_module.scaled_dot_product)
    assert fastest(SHAPE, CPU, torch.float32) in KERNELS


def test_what_does_not_run_is_told_with_what_does() -> None:
    with pytest.raises(InvalidRequest, match="cudnn does not run here on cpu in float32; these do: sdpa, math"):
        choose("cudnn", SHAPE, CPU, torch.float32, pinned=False)
    with pytest.raises(InvalidRequest, match="no attention kernel is called 'abacus'"):
        kernel("abacus")


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
    return weights @ value


class Kernel:
    """A kernel that takes contiguous tensors alone, as some do, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.answered = 0

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if not query.is_contiguous():
            raise RuntimeError("no kernel for these strides")
        self.answered += 1
        return attention(query, key, value)


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setitem(KERNELS, "picky", kernel)
    return kernel


def test_a_kernel_that_refuses_real_strides_is_replaced_by_torch_s(picky: Kernel) -> None:
    dispatch = AttentionDispatch("picky")
    strided = projected_like_a_block((2, 2, SHORT, 8), CPU, torch.float32)
    assert not strided[0].is_contiguous()
    for _ in range(3):
        assert torch.allclose(dispatch(*strided), attention(*strided), atol=1e-5)
    assert (picky.calls, picky.answered) == (1, 0)  # once for a layout
    whole = tuple(part.contiguous() for part in strided)
    assert torch.allclose(dispatch(*whole), attention(*whole), atol=1e-5)
    assert picky.answered == 1


def test_frames_and_words_are_left_to_torch(picky: Kernel) -> None:
    dispatch = AttentionDispatch("picky")
    query = torch.randn(3, 2, 200, 8)
    for keys in (torch.randn(3, 2, 77, 8), torch.randn(3, 2, 1, 8)):
        assert torch.allclose(dispatch(query, keys, keys), attention(query, keys, keys), atol=1e-5)
    frames = torch.randn(40, 2, 25, 8)
    assert torch.allclose(dispatch(frames, frames, frames), attention(frames, frames, frames), atol=1e-5)
    assert picky.calls == 0
    dispatch(query, query, query)
    assert picky.calls == 1


def test_what_memory_or_the_device_refused_is_no_refusal_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(1, 1, SHORT, 8)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: illegal memory access")):

        def fail(*_: torch.Tensor, error: Exception = error) -> torch.Tensor:
            raise error

        monkeypatch.setitem(KERNELS, "failing", fail)
        with pytest.raises(type(error)):
            AttentionDispatch("failing")(query, query, query)


@pytest.mark.parametrize("name", ["sdpa", "math"])
def test_more_sequences_than_a_launch_takes_are_computed_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = attention_module.MAX_SEQUENCES + 2
    query = torch.randn(sequences, 1, 2, 4)
    sizes: list[int] = []

    def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        sizes.append(len(query))
        return attention(query, key, value)

    monkeypatch.setattr(attention_module, "scaled_dot_product", counted)
    assert torch.allclose(AttentionDispatch(name)(query, query, query), attention(query, query, query), atol=1e-5)
    assert sizes == [65_535, 2]


def test_every_usable_kernel_is_tried_on_the_strides_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Kernel()
    monkeypatch.setitem(KERNELS, "picky", strict)
    assert "picky" not in usable((3, 2, 17, 8), CPU, torch.float32)

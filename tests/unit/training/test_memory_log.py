"""Measured memory: what is allocated after counting began, at its peak, and what was held before."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from model.platform import retain_freed_memory
from training.memory_plan import GIB, PeakMemory, describe, log_values

MIB = 2**20


def counted() -> tuple[int | None, int | None]:
    """What is counted before and after an allocation of 64 MiB, with 8 MiB held; for a process of its own."""
    retain_freed_memory()  # as a training does
    held = torch.ones(8 * MIB // 4)
    earlier = torch.ones(96 * MIB // 4)
    del earlier  # a peak from before does not count
    memory = PeakMemory(torch.device("cpu"), [held, held.view(2, -1)])
    before = memory.bytes
    passing = torch.ones(64 * MIB // 4)
    del passing
    return before, memory.bytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's account of the process")
def test_the_peak_is_counted_with_what_was_held() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        before, after = pool.submit(counted).result()
    assert before is not None and 8 * MIB <= before < 16 * MIB
    assert after is not None and 70 * MIB < after < 90 * MIB


def test_both_are_told() -> None:
    assert describe(2 * GIB, 3 * GIB) == "memory of one process: predicted 2.00 GiB, measured 3.00 GiB"
    assert describe(None, GIB) == "memory of one process: measured 1.00 GiB"
    assert log_values(GIB // 2, None) == {"predicted_gib": 0.5}


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_allocators_peak() -> None:
    device = torch.device("cuda")
    memory = PeakMemory(device, [])
    before = memory.bytes
    passing = torch.ones(64 * MIB // 4, device=device)
    del passing
    assert before is not None and memory.bytes is not None and memory.bytes >= before + 64 * MIB - MIB

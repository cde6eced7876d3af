"""Exceptions and what a caller is told of them."""

from __future__ import annotations

import errno

import pytest
import torch

from model.errors import StillmotionError, UnreadableImage
from serving.engine.oom import failure_event


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnreadableImage("half a picture"), "unreadable_image"),
        (StillmotionError("odd", code="very_odd"), "very_odd"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "storage_full"),
        (OSError(errno.EACCES, "Permission denied"), "internal_error"),
        (RuntimeError("bad kernel"), "generation_failed"),
        (ZeroDivisionError("a bug"), "internal_error"),
    ],
)
def test_each_error_has_its_code_and_says_something(error: Exception, code: str) -> None:
    event = failure_event(error)
    assert event.code == code
    assert event.message


def test_a_real_refusal_of_the_allocator_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert failure_event(caught.value).code == "out_of_memory"

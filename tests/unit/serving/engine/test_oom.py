"""Limits of a denoiser call: the 2^31 elements that FACTS-sized networks run into, and what memory refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.denoiser import DenoiserInputs, call_unet
from model.optimized.fused_blocks import MAX_ELEMENTS, fuse
from model.presets import preset
from model.shapes import LatentShape
from model.tasks import task
from model.unet import build_unet
from serving.engine.oom import BatchSizeBackoff, is_device_failure, is_out_of_memory, max_batch_size


@pytest.mark.parametrize(
    ("frames", "exported", "slots", "width"),
    [(25, True, 3, 8), (14, True, 6, 8), (25, False, 9, 3), (14, False, 17, 3)],
)
def test_the_widest_tensor_of_svd_xt_stays_countable(frames: int, exported: bool, slots: int, width: int) -> None:
    unet = build_unet(preset("svd-xt"), task("image-to-video"), device="meta")
    latent = LatentShape(frames, 4, 72, 128)
    assert max_batch_size(unet, latent, exported=exported) == slots
    widest = frames * 72 * 128 * width * 320  # of the first level
    assert slots * widest <= MAX_ELEMENTS < (slots + 1) * widest


@pytest.mark.slow
def test_two_guided_clips_of_svd_xt_make_no_tensor_that_a_kernel_cannot_count() -> None:
    """Counted on meta tensors at full size: the largest tensor of a fused call with the most slots there may be."""
    unet = build_unet(preset("svd-xt"), task("image-to-video"), device="meta").eval()
    fuse(unet)
    slots = max_batch_size(unet, LatentShape(25, 4, 72, 128))
    assert slots >= 4
    empty = partial(torch.empty, device="meta")
    inputs = DenoiserInputs(
        empty(slots, 25, 4, 72, 128),
        empty(slots),
        empty(slots, 1, 1024),
        empty(slots, 25, 4, 72, 128),
        empty(slots, 3),
    )
    with torch.inference_mode(), Largest() as largest:
        call_unet(unet, inputs)
    assert 2**30 < largest.numel <= MAX_ELEMENTS


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(one.numel() for one in tree_leaves(out) if isinstance(one, Tensor))])
        return out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        *([torch.AcceleratorError("CUDA error: out of memory")] if hasattr(torch, "AcceleratorError") else []),
    ],
)
def test_every_library_s_refusal_counts_as_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_device_failure(error)


@pytest.mark.parametrize(
    ("text", "sticky"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: unspecified launch failure", True),
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: invalid configuration argument", False),
        ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_sticky_error_of_the_device_is_told_from_one_call_s(text: str, sticky: bool) -> None:
    kinds = [RuntimeError, *([torch.AcceleratorError] if hasattr(torch, "AcceleratorError") else [])]
    for kind in kinds:
        assert is_device_failure(kind(text)) is sticky
        assert not is_out_of_memory(kind(text))
    assert not is_device_failure(ValueError(text))


def test_a_small_network_has_room() -> None:
    unet = build_unet(preset("tiny"), task("image-to-video"), device="meta")
    assert max_batch_size(unet, LatentShape(6, 4, 8, 8)) > 1000


def test_a_refused_batch_is_not_tried_again_soon() -> None:
    ceiling = BatchSizeBackoff()
    assert ceiling.of("a", 8) == 8
    ceiling.refuse("a", 4)
    assert ceiling.of("a", 8) == 3
    assert ceiling.of("a", 2) == 2
    assert ceiling.of("b", 8) == 8
    ceiling.refuse("a", 1)
    assert ceiling.of("a", 8) == 1

"""Which kernels a network uses: those that are right and faster than torch's own operations, measured on the device.

Legend: B clips, T frames, N pixels, C channels of the first level.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from model.errors import InvalidRequest
from model.optimized.attention import scaled_dot_product
from model.optimized.kernel_blocks import attend_by_products
from model.optimized.kernels.block_ops import (
    BLEND,
    GEGLU,
    GROUP_NORM,
    LAYER_NORM,
    NAMES,
    TEMPORAL_ATTENTION,
    VAE_ATTENTION,
    BlockOps,
)
from model.optimized.rewrites import relative_difference

logger = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"
ROUNDS = 5
VAE_WIDTH = 512
"""Of the one head in published autoencoders."""
LARGEST_BYTES = 2**28
"""Of the widest tensor in a measurement, which must fit beside the networks; larger ones take as long a number."""
TOLERANCE = 2e-2
"""Largest difference from torch's own, over the largest magnitude, in half precision."""


def block_ops(kernels: str, device: torch.device) -> BlockOps | None:
    """The operations for a device: None on a CPU, which works in parts that fit its cache.

    Args:
        kernels: names with commas, or `none`, as `choose_kernels` gives them; `auto`, where nothing was measured, too.
    """
    if device.type == "cpu":
        return None
    return BlockOps(() if kernels in (AUTO, NONE) else kernels.split(","))


def choose_kernels(
    requested: str, clip: tuple[int, int, int], heads: int, device: torch.device, dtype: torch.dtype, *, pinned: bool
) -> str:
    """The names of the kernels to use, with commas, or `none`.

    Args:
        requested: names with commas, `none`, or `auto`: those measured to be faster on a GPU; none where pinned.
        clip: T, N, C where tensors are largest.
        heads: of attention there.
        pinned: whether every start must choose the same.

    Raises:
        InvalidRequest: a name of no kernel, or a device that has none.
    """
    if requested == NONE:
        return NONE
    if requested == AUTO:
        if device.type != "cuda" or pinned:
            return NONE
        return ",".join(_faster(clip, heads, device, dtype)) or NONE
    names = BlockOps(filter(None, requested.split(","))).names
    if device.type != "cuda":
        raise InvalidRequest("--kernels are of an NVIDIA GPU; leave it out on a CPU", param="kernels")
    if names - {VAE_ATTENTION} and find_spec("triton") is None:
        raise InvalidRequest(
            "--kernels need Triton, which comes with torch's builds for CUDA on Linux: pip install triton",
            param="kernels",
            code="missing_kernel",
        )
    return ",".join(name for name in NAMES if name in names) or NONE


def _faster(clip: tuple[int, int, int], heads: int, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Names of the kernels that give what torch gives, in less time."""
    chosen = []
    for name, run in trials(clip, heads, device, dtype).items():
        if name != VAE_ATTENTION and find_spec("triton") is None:
            continue
        try:
            if _is_faster(name, run, device):
                chosen.append(name)
        except _refusals() as error:
            logger.warning("the kernel %s is not used here: %s", name, error)
    return chosen


def _refusals() -> tuple[type[Exception], ...]:
    """What a kernel that does not fit the device raises."""
    errors: tuple[type[Exception], ...] = (RuntimeError, NotImplementedError, ValueError, ImportError)
    if find_spec("triton") is not None:
        from triton.errors import TritonError

        errors = (*errors, TritonError)
    return errors


def _is_faster(name: str, run: Callable[[BlockOps], Tensor], device: torch.device) -> bool:
    kernel, plain = BlockOps((name,)), BlockOps(())
    with torch.inference_mode():
        if relative_difference(run(kernel).float(), run(plain).float()) > TOLERANCE:
            return False
        return seconds(lambda: run(kernel), device) < seconds(lambda: run(plain), device)


def trials(
    clip: tuple[int, int, int], heads: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[BlockOps], Tensor]]:
    """For each kernel, what to measure: its operation at the clip's size, or at what `LARGEST_BYTES` allows of it."""
    frames, pixels, channels = clip
    pixels = max(1, min(pixels, LARGEST_BYTES // (frames * 8 * channels * dtype.itemsize)))
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    x, y = random(1, frames, pixels, channels), random(1, frames, pixels, channels)
    wide, projected = random(frames * pixels, 8 * channels), random(1, frames, pixels, 3 * channels)
    head = random(3, 1, pixels, VAE_WIDTH)
    group = nn.GroupNorm(32 if channels % 32 == 0 else 1, channels).to(device, dtype)
    layer = nn.LayerNorm(channels).to(device, dtype)
    share = random()
    return {
        GROUP_NORM: lambda ops: ops.group_norm(x[0], group, silu=True).contiguous(),
        LAYER_NORM: lambda ops: ops.add_layer_norm(x, y.clone(), layer)[1],
        GEGLU: lambda ops: ops.geglu(wide),
        BLEND: lambda ops: ops.add_lerp(x, x, y.clone(), share),
        TEMPORAL_ATTENTION: lambda ops: ops.temporal_attention(projected, heads, scaled_dot_product).contiguous(),
        VAE_ATTENTION: lambda ops: (
            attend_by_products(*head)
            if VAE_ATTENTION in ops.names
            else scaled_dot_product(*(part[:, None] for part in head))[:, 0]
        ),
    }


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of a few runs."""
    taken = []
    for _ in range(ROUNDS):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

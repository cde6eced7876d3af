"""Attention kernels by name: the same sums, each in another order; which is fastest is measured on the device.

`sdpa` leaves the choice to torch. Of the others each names one kernel; a kernel that a device, dtype or head size does
not have raises when it is run, so `usable` tries before `fastest` measures.

Legend: B independent sequences, H heads, L tokens, d width of a head.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.errors import InvalidRequest, MissingExtra

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values, each [B, H, L, d], to softmax(q k^T / sqrt(d)) v, [B, H, L, d]."""

AUTO = "auto"
ROUNDS = 3


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's own, in the kernel torch chooses."""
    return F.scaled_dot_product_attention(query, key, value)


def _one_kernel(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)


def _xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    try:
        from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingExtra("--attention xformers", "xformers") from error
    parts = (part.transpose(1, 2) for part in (query, key, value))  # its layout is [B, L, H, d]
    return cast(Tensor, memory_efficient_attention(*parts).transpose(1, 2))


def _flash3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """FlashAttention 3 (Shah et al. 2024, arXiv 2407.08608), for Hopper GPUs, in half precision."""
    try:
        from flash_attn_interface import flash_attn_func  # type: ignore[import-not-found]
    except ImportError as error:
        raise InvalidRequest(
            "flash3 needs FlashAttention 3's module flash_attn_interface, which is built from its sources; choose "
            "another --attention",
            param="attention",
            code="missing_kernel",
        ) from error
    out: Any = flash_attn_func(*(part.transpose(1, 2).contiguous() for part in (query, key, value)))
    return cast(Tensor, (out[0] if isinstance(out, tuple) else out).transpose(1, 2))


KERNELS: dict[str, Attend] = {
    "sdpa": scaled_dot_product,
    "math": partial(_one_kernel, SDPBackend.MATH),
    "flash": partial(_one_kernel, SDPBackend.FLASH_ATTENTION),
    "efficient": partial(_one_kernel, SDPBackend.EFFICIENT_ATTENTION),
    "cudnn": partial(_one_kernel, SDPBackend.CUDNN_ATTENTION),
    "xformers": _xformers,
    "flash3": _flash3,
}
"""A new kernel is one function and one line."""

_NEEDS = {"xformers": "xformers", "flash3": "flash_attn_interface"}


def kernel(name: str) -> Attend:
    """The kernel called `name`.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in KERNELS:
        raise InvalidRequest(
            f"no attention kernel is called {name!r}; there are: {', '.join((AUTO, *KERNELS))}", param="attention"
        )
    return KERNELS[name]


MAX_SEQUENCES = 65_535
"""Sequences that one kernel launch takes: CUDA's bound on a grid's second and third axis."""
SHORT = 128
"""Sequences of fewer queries or keys (frames of a clip, words of a prompt) are left to torch, whatever was chosen."""

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]


class AttentionDispatch:
    """An Attend that takes the named kernel where it was chosen for and where it runs, and torch's own elsewhere.

    A name is chosen by the longest sequences, those of space. What a kernel supports also depends on the shapes and
    strides of a call, so each new layout is tried once; a kernel that refuses one is not asked again for it. Batches
    of more than `MAX_SEQUENCES` sequences are computed in parts.

    Args:
        name: of the kernel.
    """

    def __init__(self, name: str) -> None:
        self._preferred = kernel(name)
        self._is_default = self._preferred is scaled_dot_product
        self._refused: set[tuple[Layout, ...]] = set()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See Attend."""
        if query.shape[0] <= MAX_SEQUENCES:
            return self._attend(query, key, value)
        parts = zip(*(part.split(MAX_SEQUENCES) for part in (query, key, value)), strict=True)
        return torch.cat([self._attend(*part) for part in parts])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self._is_default or min(query.shape[-2], key.shape[-2]) < SHORT:
            return scaled_dot_product(query, key, value)
        if torch.compiler.is_compiling():  # what cannot be traced is found by the warm-up; nothing is tried in a trace
            return self._preferred(query, key, value)
        layout = tuple((part.shape[1:], part.stride(), part.dtype, part.device) for part in (query, key, value))
        if layout not in self._refused:
            try:
                return self._preferred(query, key, value)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError, ValueError) as error:  # each library refuses in its own way
                if "CUDA error" in str(error) or "allocate memory" in str(error):
                    raise
                self._refused.add(layout)
        return scaled_dot_product(query, key, value)


def projected_like_a_block(
    shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values of a shape [B, H, L, d], with the strides of one stacked projection."""
    sequences, heads, length, width = shape
    projected = torch.randn(sequences, length, 3 * heads * width, device=device, dtype=dtype)
    query, key, value = (part.unflatten(-1, (heads, width)).transpose(1, 2) for part in projected.chunk(3, -1))
    return query, key, value


def usable(shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The kernels that run for queries of this shape [B, H, L, d]; `sdpa` is always among them."""
    probe = projected_like_a_block((1, *shape[1:]), device, dtype)
    return tuple(name for name in KERNELS if name == "sdpa" or _runs(name, probe))


def _runs(name: str, probe: tuple[Tensor, Tensor, Tensor]) -> bool:
    if name in _NEEDS and find_spec(_NEEDS[name]) is None:
        return False
    try:
        KERNELS[name](*probe)
    except (RuntimeError, NotImplementedError, ValueError, ImportError):  # each library refuses in its own way
        return False
    return True


def fastest(shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> str:
    """The kernel that takes least time for queries of this shape [B, H, L, d] on the device."""
    parts = projected_like_a_block(shape, device, dtype)
    probe = projected_like_a_block((1, *shape[1:]), device, dtype)
    names = [name for name in KERNELS if name != "math" and (name == "sdpa" or _runs(name, probe))]
    return min(names, key=lambda name: _seconds(KERNELS[name], parts))


def choose(
    requested: str, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, *, pinned: bool
) -> str:
    """The name of the kernel to use for a requested one.

    Args:
        requested: a name, or `auto`: torch's own choice on a CPU and where pinned, else the fastest as measured here.
        shape: of the queries where attention is dearest, [B, H, L, d].
        pinned: whether every start must choose the same.

    Raises:
        InvalidRequest: no kernel is called that, or it does not run on the device.
    """
    if requested == AUTO:
        return "sdpa" if pinned or device.type == "cpu" else fastest(shape, device, dtype)
    kernel(requested)
    # Only the requested one is tried: `math` at full size holds L x L scores, over a GiB.
    if requested != "sdpa" and not _runs(requested, projected_like_a_block((1, *shape[1:]), device, dtype)):
        runs = usable(shape, device, dtype)
        raise InvalidRequest(
            f"attention {requested} does not run here on {device.type} in {str(dtype).removeprefix('torch.')}; "
            f"these do: {', '.join(runs)}",
            param="attention",
            code="missing_kernel",
        )
    return requested


def _seconds(attend: Attend, parts: tuple[Tensor, Tensor, Tensor]) -> float:
    """The fastest of a few runs; the first also loads the kernel."""
    seconds = []
    for _ in range(ROUNDS):
        _wait(parts[0].device)
        started = time.perf_counter()
        attend(*parts)
        _wait(parts[0].device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

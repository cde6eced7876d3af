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


def usable(shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The kernels that run for queries of this shape [B, H, L, d]; `sdpa` is always among them."""
    probe = torch.zeros((1, *shape[1:]), device=device, dtype=dtype)
    return tuple(name for name in KERNELS if name == "sdpa" or _runs(name, probe))


def _runs(name: str, probe: Tensor) -> bool:
    if name in _NEEDS and find_spec(_NEEDS[name]) is None:
        return False
    try:
        KERNELS[name](probe, probe, probe)
    except (RuntimeError, NotImplementedError, ValueError, ImportError):  # each library refuses in its own way
        return False
    return True


def fastest(shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> str:
    """The kernel that takes least time for queries of this shape [B, H, L, d] on the device."""
    parts = tuple(torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    names = [name for name in usable(shape, device, dtype) if name != "math"]
    return min(names, key=lambda name: _seconds(KERNELS[name], parts))


def choose(
    asked: str, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, *, pinned: bool
) -> str:
    """The name of the kernel to use where `asked` was asked for.

    Args:
        asked: a name, or `auto`: torch's own choice on a CPU and where pinned, else the fastest as measured here.
        shape: of the queries where attention is dearest, [B, H, L, d].
        pinned: whether every start must choose the same.

    Raises:
        InvalidRequest: no kernel is called that, or it does not run on the device.
    """
    if asked == AUTO:
        return "sdpa" if pinned or device.type == "cpu" else fastest(shape, device, dtype)
    kernel(asked)
    runs = usable(shape, device, dtype)
    if asked not in runs:
        raise InvalidRequest(
            f"attention {asked} does not run here on {device.type} in {str(dtype).removeprefix('torch.')}; these do: "
            f"{', '.join(runs)}",
            param="attention",
            code="missing_kernel",
        )
    return asked


def _seconds(attend: Attend, parts: tuple[Tensor, ...]) -> float:
    """The fastest of a few runs; the first also loads the kernel."""
    taken = []
    for _ in range(ROUNDS):
        _wait(parts[0].device)
        started = time.perf_counter()
        attend(*parts)
        _wait(parts[0].device)
        taken.append(time.perf_counter() - started)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

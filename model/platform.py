"""The platform that a model runs on: its device, the dtype of its weights there, and the C library's allocator.

Imports torch only to look for a GPU.

The allocator (glibc's mallopt): memory that a step frees stays with the process for the next step. A denoiser call and
a decoded chunk allocate and free hundreds of tensors of many megabytes. glibc returns each of those to the kernel at
once and gets it back as fresh pages, zeroed one fault at a time: some 700,000 faults and an eighth of the time of a
mini video. With trimming off, a process settles at the memory of its largest call.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Final, Literal, cast

from model.errors import InvalidRequest
from model.sources.layout import Precision

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]


def resolve_dtype(dtype: DtypeName | str, device: str) -> Precision:
    """The dtype of the weights: `auto` is float16 on a CUDA device, as published pipelines run, and float32 on a CPU.

    Args:
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`.
    """
    if dtype != "auto":
        return cast(Precision, dtype)
    if device == "cpu" or (device == "auto" and not may_have_gpu()):
        return "float32"  # known without torch, whose import takes seconds
    return "float16" if resolve_device(device).startswith("cuda") else "float32"


_GPU_DRIVERS: Final = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/nvmap", "/dev/nvhost-ctrl-gpu")
"""Device files of what torch may call cuda: NVIDIA's driver, AMD's, Windows' in WSL, NVIDIA's on Jetson."""


def may_have_gpu() -> bool:
    """Whether torch could see a CUDA device here; True where torch is there to be asked, or nothing else can tell."""
    if "torch" in sys.modules or not sys.platform.startswith("linux"):
        return True
    return any(Path(file).exists() for file in _GPU_DRIVERS)


def is_intel(name: str) -> bool:
    """Whether a device is one of those that only OpenVINO runs on: xpu, xpu:1, npu."""
    return name == "npu" or name.partition(":")[0] == "xpu"


def resolve_device(name: str) -> str:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:1`; auto is CUDA where torch sees a device.

    `cpu` for Intel's GPUs and NPUs (xpu, xpu:1, npu) too: OpenVINO runs the networks there, and torch the rest here.

    Raises:
        InvalidRequest: another name, or a CUDA device that torch does not see.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name == "cpu" or is_intel(name):
        return "cpu"
    kind, colon, number = name.partition(":")
    if kind != "cuda" or bool(colon) != number.isdecimal():
        raise InvalidRequest(f"a device is auto, cpu, cuda, cuda:1, xpu, xpu:1 or npu, not {name!r}", param="device")
    if int(number or 0) >= count:
        there = "no CUDA device" if not count else "one CUDA device" if count == 1 else f"{count} CUDA devices"
        raise InvalidRequest(
            f"device {name}: torch {torch.__version__} sees {there} here; take cpu, or install the GPU's driver and a "
            "build of torch for CUDA",
            param="device",
        )
    return name


def resolve_devices(names: str) -> list[str]:
    """The devices of `cuda:0,cuda:1`, or of `all`: every CUDA device that torch sees.

    Raises:
        InvalidRequest: there is none, one is not here, or a GPU is named twice.
    """
    if names == "all":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise InvalidRequest("--devices all: torch sees no CUDA device here; leave --devices out", param="devices")
        return [f"cuda:{number}" for number in range(count)]
    devices = ["cuda:0" if name == "cuda" else name for name in names.split(",")]
    for name in devices:
        if name != "cpu" and not name.startswith("cuda"):
            raise InvalidRequest(f"--devices takes cuda:0,cuda:1 or all, not {names!r}", param="devices")
        resolve_device(name)
        if name != "cpu" and devices.count(name) > 1:
            raise InvalidRequest(f"--devices has {name} twice", param="devices")
    return devices


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
"""Numbers of mallopt's options (malloc.h)."""
_NEVER: Final = 2**31 - 1
_SETTINGS: Final = (
    (_MMAP_THRESHOLD, _NEVER),
    (_TRIM_THRESHOLD, _NEVER),
    (_TOP_PAD, 64 * 2**20),
    # One heap: a thread's own is too small for such tensors, and would map and unmap them all the same.
    (_ARENA_MAX, 1),
)


@cache
def retain_freed_memory() -> bool:
    """Let this process keep what it frees; whether it does now.

    For the process's life, and once. Not with another C library than glibc, and not where the environment sets the
    allocator up itself (`MALLOC_*`, `GLIBC_TUNABLES`, `LD_PRELOAD`).
    """
    configured = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if configured or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(bool(mallopt(option, value)) for option, value in _SETTINGS)


def resident_bytes() -> int | None:
    """Memory that this process holds in RAM; None on a system that does not say (/proc/self/statm)."""
    try:
        with Path("/proc/self/statm").open() as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def trim_freed_memory() -> bool:
    """Return to the kernel what is freed now, kept or not; whether this C library does that.

    After work that took more than what follows will, and for whoever measures how much some work takes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True

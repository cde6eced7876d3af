"""glibc malloc settings (mallopt): memory that a step frees stays with the process for the next step.

A denoiser call and a decoded chunk allocate and free hundreds of tensors of many megabytes. glibc returns each of
those to the kernel at once and gets it back as fresh pages, zeroed one fault at a time: some 700,000 faults and an
eighth of the time of a mini video. With trimming off, a process settles at the memory of its largest call.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Final

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

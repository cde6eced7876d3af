"""Memory for a checkpoint's weights, whose pages a thread faults in while libraries are imported. Imports no torch.

Weights that are converted as they are read (float16 files, float32 on a CPU) are written into fresh memory, which the
kernel zeroes and hands out a page at a time. Of a checkpoint of gigabytes that is most of the time to load it, and
imports meanwhile occupy one core. So `prefault_weights` reserves what the file headers say, madvise's
MADV_POPULATE_WRITE (Linux 5.14) faults it in, and `model.weights` takes it, however far the thread is. Elsewhere
nothing is reserved, and memory is allocated as it is written.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Final

from model.platform import may_have_gpu
from model.sources.layout import component_files, read_header

if TYPE_CHECKING:
    from model.catalog import ModelEntry

ALIGNMENT: Final = 64
"""Bytes: a cache line, and the width of AVX-512."""
NETWORKS: Final = ("unet", "vae", "image_encoder", "text_encoder")
"""Folders of a checkpoint, in the order in which they are loaded."""
LEAST: Final = 256 * 2**20
"""Bytes of a network below which nothing is gained."""
_SHARE: Final = 0.6
"""Of the memory that is available now: the most that is reserved."""
_POPULATE_WRITE: Final = 23
_STEP: Final = 64 * 2**20
_FLOATS: Final = ("F16", "BF16", "F64")

_lock = Lock()
_reserved: dict[Path, mmap.mmap] = {}


def prefault_weights(entry: ModelEntry, device: str) -> int:
    """Reserve memory for the networks whose files are converted to float32, and begin to fault it in.

    Args:
        device: as requested: `cpu`, or `auto` where there is no GPU; nothing is reserved for another.

    Returns:
        bytes reserved; 0 where nothing is converted, memory is scarce, or the system cannot do it.

    Raises:
        CheckpointError: a network's weights are missing, or a file is cut short.
    """
    on_cpu = device == "cpu" or (device == "auto" and not may_have_gpu())
    if not on_cpu or entry.exported or not sys.platform.startswith("linux"):
        return 0
    sizes = {entry.path / name: converted_bytes(entry, name) for name in NETWORKS if (entry.path / name).is_dir()}
    sizes = {folder: size for folder, size in sizes.items() if size >= LEAST}
    total = sum(sizes.values())
    if not total or total > _SHARE * _available_bytes():
        return 0
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        memory = {folder: mmap.mmap(-1, size, flags=private) for folder, size in sizes.items()}
    except OSError:  # the system commits no more: whether the weights fit after all is seen when they are loaded
        return 0
    with _lock:
        _reserved.update(memory)
    Thread(target=_populate, args=(list(memory.values()),), name="stillmotion-prefault", daemon=True).start()
    return total


def converted_bytes(entry: ModelEntry, network: str) -> int:
    """Bytes of a network's weights in float32, each aligned, if its files hold floats of another dtype; else 0."""
    files = component_files(entry.path / network, entry.precision).files
    weights = [weight for file in files for weight in read_header(file).values()]
    if not any(one["dtype"] in _FLOATS for one in weights):
        return 0
    step = ALIGNMENT // 4
    return 4 * sum(-(-math.prod(map(int, one["shape"])) // step) * step for one in weights)


def take(folder: Path, size: int) -> mmap.mmap | None:
    """The memory that was reserved for a network's folder, once; None if there is none, or it is too small."""
    with _lock:
        memory = _reserved.pop(folder, None)
    return memory if memory is not None and len(memory) >= size else None


def discard(checkpoint: Path) -> None:
    """Let go of what was reserved for a checkpoint and nobody took: its networks run as graphs."""
    with _lock:
        for folder in [folder for folder in _reserved if folder.parent == checkpoint]:
            del _reserved[folder]


def _available_bytes() -> int:
    line = next(one for one in Path("/proc/meminfo").read_text().splitlines() if one.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])


def _populate(blocks: list[mmap.mmap]) -> None:
    """Fault in every page; the interpreter's lock is free meanwhile. A kernel that cannot ends it at once."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    while blocks:
        block = blocks.pop(0)  # the thread's own reference goes with it
        start = ctypes.addressof(ctypes.c_char.from_buffer(block))
        for offset in range(0, len(block), _STEP):
            size = min(_STEP, len(block) - offset)
            if madvise(ctypes.c_void_p(start + offset), ctypes.c_size_t(size), _POPULATE_WRITE) != 0:
                return

"""Where the onnxruntime backend finds a denoiser's file: in an exported folder, or in a cache, exported on first use.

The cache lies in the user's cache folder of the platform; STILLMOTION_CACHE names another. An entry's name holds all
that its content depends on, and it appears at once or not at all.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from model.backends.onnx_graph import (
    OPSET,
    REWRITES,
    TRACED_BATCH,
    DenoiserModule,
    denoiser_graph,
    require_onnx,
    write_graph,
)
from model.checkpoint import Checkpoint
from model.manifest import ONNX_FOLDER
from model.rewrites import fold_blends, rewrite_exactly
from model.shapes import VAE_STRIDE

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The user's cache folder for stillmotion; it may not exist yet."""
    if named := os.environ.get("STILLMOTION_CACHE"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stillmotion"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "stillmotion" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillmotion"


def cache_key(checkpoint: Checkpoint) -> str:
    """What an exported denoiser depends on: weights, dtype, rewrites, and the tools that wrote it."""
    require_onnx("the onnxruntime backend's export")
    dtype = str(checkpoint.unet.dtype).removeprefix("torch.")
    tools = f"torch{version('torch')}-onnx{version('onnx')}-onnxscript{version('onnxscript')}"
    return f"{checkpoint.entry.version}-{dtype}-r{REWRITES}-o{OPSET}-{tools}"


def denoiser_file(checkpoint: Checkpoint, cache: Path | None = None) -> Path:
    """The ONNX file of the checkpoint's denoiser.

    An exported folder's own; else the cache's, where it is made if it is not there yet (minutes for a large network).

    Raises:
        MissingExtra: it is to be made, and onnx or onnxscript is not installed.
    """
    own = checkpoint.entry.path / ONNX_FOLDER / "unet.onnx"
    if own.exists():
        return own
    folder = (cache or cache_folder()) / "denoisers" / cache_key(checkpoint)
    if not folder.exists():
        _make(checkpoint, folder)
    return folder / "unet.onnx"


def _make(checkpoint: Checkpoint, folder: Path) -> None:
    entry = checkpoint.entry
    logger.info("exporting the denoiser of %s to ONNX, once, into %s", entry.name, folder)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir(parents=True)
    try:
        rewrite_exactly(checkpoint.unet, context_tokens=entry.task.context_tokens)
        fold_blends(checkpoint.unet)
        height, width = entry.height // VAE_STRIDE, entry.width // VAE_STRIDE
        graph = denoiser_graph(
            entry.task,
            checkpoint.unet.config,
            height=height,
            width=width,
            dtype=str(checkpoint.unet.dtype).removeprefix("torch."),
            free_size=True,
        )
        sizes = {"batch": TRACED_BATCH, "height": height, "width": width}
        write_graph(DenoiserModule(checkpoint.unet), graph, part / "unet.onnx", sizes)
        _publish(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _publish(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError:
        if not folder.exists():  # else another process made the same one first
            raise

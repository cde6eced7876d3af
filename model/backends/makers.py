"""Denoiser backends by name. A new one is one file and one line here; each is imported only when asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.backends.protocol import Cores, Denoiser
from model.catalog import ModelEntry
from model.checkpoint import Checkpoint
from model.errors import InvalidRequest


def _torch(checkpoint: Checkpoint, cores: Cores) -> Denoiser:
    from model.backends.torch import TorchDenoiser
    from model.rewrites import rewrite_exactly

    rewrite_exactly(checkpoint.unet, context_tokens=checkpoint.entry.task.context_tokens)
    return TorchDenoiser(checkpoint.unet, cores)


def _compiled(checkpoint: Checkpoint, cores: Cores) -> Denoiser:
    from model.backends.compiled import CompiledDenoiser
    from model.rewrites import fold_blends, rewrite_exactly

    rewrite_exactly(checkpoint.unet, context_tokens=checkpoint.entry.task.context_tokens)
    fold_blends(checkpoint.unet)
    return CompiledDenoiser(checkpoint.unet, cores)


def _onnxruntime(checkpoint: Checkpoint, cores: Cores) -> Denoiser:
    from model.backends.onnx_cache import denoiser_file
    from model.backends.onnxruntime import OnnxDenoiser

    return OnnxDenoiser(denoiser_file(checkpoint), checkpoint.unet.device, cores)


def _tensorrt(checkpoint: Checkpoint, cores: Cores) -> Denoiser:
    from model.backends.tensorrt import TensorRtDenoiser

    del cores  # an engine uses none
    return TensorRtDenoiser(checkpoint.entry.path, checkpoint.unet.device)


MAKERS: dict[str, Callable[[Checkpoint, Cores], Denoiser]] = {
    "torch": _torch,
    "torch-compiled": _compiled,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
}


AUTO = "auto"


def backend_for(entry: ModelEntry, asked: str) -> str:
    """The backend called `asked`; for `auto`, onnxruntime for an exported folder and torch for a checkpoint.

    Raises:
        InvalidRequest: no backend is called that, or it needs weights that an exported folder does not have, or engines
            that a checkpoint does not have.
    """
    if asked == AUTO:
        return "onnxruntime" if entry.exported else "torch"
    if asked not in MAKERS:
        raise InvalidRequest(f"no backend is called {asked!r}; there are: {', '.join(MAKERS)}", param="backend")
    if entry.exported and asked in ("torch", "torch-compiled"):
        raise InvalidRequest(
            f"{entry.name} is an export: it has graphs and no weights for {asked}; take --denoiser onnxruntime",
            param="backend",
        )
    if asked == "tensorrt" and not entry.exported:
        raise InvalidRequest(
            f"{entry.name} is a checkpoint, and tensorrt runs engines: export it with --backend tensorrt or "
            "tensorrt-rtx, and name REPOSITORY/NAME",
            param="backend",
        )
    return asked


def make_denoiser(backend: str, checkpoint: Checkpoint, cores: Cores | None = None) -> Denoiser:
    """A denoiser of the checkpoint's UNet on the backend called `backend`.

    Args:
        cores: of the CPU; None for as many as torch would use, not pinned.

    Raises:
        InvalidRequest: no backend is called that, or it does not fit (`backend_for`).
    """
    backend = backend_for(checkpoint.entry, backend)
    return MAKERS[backend](checkpoint, cores or Cores(torch.get_num_threads()))

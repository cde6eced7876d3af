"""Denoiser backends by name. A new one is one file and one line here; each is imported only when asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.backends.protocol import Cores, Denoiser
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


MAKERS: dict[str, Callable[[Checkpoint, Cores], Denoiser]] = {
    "torch": _torch,
    "torch-compiled": _compiled,
    "onnxruntime": _onnxruntime,
}


def make_denoiser(backend: str, checkpoint: Checkpoint, cores: Cores | None = None) -> Denoiser:
    """A denoiser of the checkpoint's UNet on the backend called `backend`.

    Args:
        cores: of the CPU; None for as many as torch would use, not pinned.

    Raises:
        InvalidRequest: no backend is called that.
    """
    if backend not in MAKERS:
        raise InvalidRequest(f"no backend is called {backend!r}; there are: {', '.join(MAKERS)}", param="backend")
    return MAKERS[backend](checkpoint, cores or Cores(torch.get_num_threads()))

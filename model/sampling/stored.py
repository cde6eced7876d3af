"""A row on its way through a crash: what cannot be computed again, as a safetensors file.

Stored are the sample, the solver's history and the step, in float32. What the network is told is encoded again from
the request when it resumes, so a state is small (25 x 4 x 72 x 128 latents: 3.7 MB) and holds nothing of the picture's
pixels. A fingerprint of what the steps depend on refuses a state of another request, solver or checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from model.errors import InvalidRequest
from model.sampling.row import Row
from model.sampling.solvers import SolverState

MADE_BY = "model"
"""In a state's metadata: NAME@VERSION of the checkpoint that made it, to be read without torch."""
_STEP, _FINGERPRINT, _HISTORY = "step", "fingerprint", ("slope", "denoised")


def store(row: Row) -> bytes:
    """The row's state, to go on from with `restore`."""
    state = row.state
    tensors = {"x": state.x}
    tensors |= {name: kept for name in _HISTORY if (kept := getattr(state, name)) is not None}
    ready = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    ready[_STEP] = torch.tensor(state.step)
    ready[_FINGERPRINT] = torch.frombuffer(bytearray(fingerprint(row)), dtype=torch.uint8)
    return save(ready, metadata={MADE_BY: row.key.model})


def restore(fresh: Row, stored: bytes) -> Row:
    """The row that `stored` was made of.

    Args:
        fresh: the same request's row at its beginning.

    Raises:
        InvalidRequest: no stored state, or one of another request, checkpoint or set of settings.
    """
    try:
        tensors = load(stored)
        step, mark, x = int(tensors[_STEP]), bytes(tensors[_FINGERPRINT].tolist()), tensors["x"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise InvalidRequest(f"this is no stored state: {error}; begin anew", param="resume_from") from error
    if mark != fingerprint(fresh) or x.shape != fresh.latents.shape or not 0 <= step <= fresh.total:
        raise InvalidRequest(
            "the stored state is of another request, checkpoint or set of settings; begin anew", param="resume_from"
        )
    device = fresh.latents.device
    history = {name: tensors[name].to(device) for name in _HISTORY if name in tensors}
    return replace(fresh, state=SolverState(x.to(device), step, **history))


def fingerprint(row: Row) -> bytes:
    """A SHA-256 over what the row's steps depend on, besides its pictures and its text."""
    told = [row.key.model, astuple(row.key.latent), row.key.dtype, row.solver, row.sigmas, row.seed]
    told += [row.scale.tolist(), *([row.interval] if row.interval is not None else [])]
    told += [astuple(row.key.lora)] if row.key.lora is not None else []
    return hashlib.sha256(json.dumps(told).encode()).digest()

"""Rows of many requests through ONE denoiser call.

Each row asks for one evaluation at its own noise level; a guided row takes two places in the call, one unconditional
and one conditional. Nothing here mixes rows, so a row's result does not depend on its company beyond float rounding.
Nor does anything here wait for the device: what a row brings lies there already, and numbers travel as arguments of
the kernels that fill them in.

Legend: R rows, B places in the call (R to 2R), T frames, C channels; h, w latent.

The plain loop: one row from noise to clean latents. What the engine does for many rows, readable in four lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.denoiser import AdaptableDenoiser, Denoiser, ReusingDenoiser
from model.errors import InvalidRequest
from model.sampling.guidance import guide
from model.sampling.precondition import append_dims, ode_derivative, precondition
from model.sampling.row import Row
from model.sampling.solvers import Latents


def batch_size(rows: Sequence[Row]) -> int:
    """How many places of the denoiser's batch the rows take."""
    return sum(len(row.told) for row in rows)


def evaluate(denoiser: Denoiser, rows: Sequence[Row]) -> list[Latents]:
    """The ODE's slope dx/dsigma at the point each row asks for, guided, in one denoiser call.

    Args:
        rows: at least one, all of one BatchKey, none done.
    """
    return _evaluate(denoiser, rows)[0]


def _evaluate(denoiser: Denoiser, rows: Sequence[Row]) -> tuple[list[Latents], list[Row]]:
    """The slopes, and the rows with the features that each keeps for its next evaluation."""
    _adapt(denoiser, rows)
    wanted = [row.request() for row in rows]
    x = torch.stack([evaluation.x for evaluation in wanted])
    sigma = torch.cat([torch.full((1,), evaluation.sigma, device=x.device) for evaluation in wanted])
    c = precondition(sigma)
    scaled = x * append_dims(c.c_in, x)
    place = [index for index, row in enumerate(rows) for _ in row.told]
    told = [condition for row in rows for condition in row.told]
    inputs = (
        torch.stack([scaled[index] for index in place]),
        torch.stack([c.c_noise[index] for index in place]),
        torch.stack([condition.context for condition in told]),
        torch.stack([condition.concat for condition in told]),
        torch.stack([condition.vector for condition in told]),
    )
    if isinstance(denoiser, ReusingDenoiser):
        output, kept = denoiser.reusing(inputs, [row.kept for row in rows], [len(row.told) for row in rows])
        rows = [replace(row, kept=one) for row, one in zip(rows, kept, strict=True)]
    else:
        output = denoiser(*inputs)
    return list(ode_derivative(scaled, torch.stack(_guided(output, rows)), sigma)), list(rows)


def _adapt(denoiser: Denoiser, rows: Sequence[Row]) -> None:
    """Let the denoiser have the rows' LoRA in its weights, or none."""
    lora = rows[0].key.lora
    if any(row.key.lora != lora for row in rows):
        raise InvalidRequest("rows of different LoRAs cannot share a call", param="lora")
    if isinstance(denoiser, AdaptableDenoiser):
        denoiser.adapt(lora)
    elif lora is not None:
        raise InvalidRequest(
            f"this denoiser cannot apply the LoRA {lora.name!r}; serve the checkpoint with --denoiser torch",
            code="lora_unsupported",
            param="lora",
        )


def advance(denoiser: Denoiser, rows: Sequence[Row]) -> list[Row]:
    """Every row one evaluation further, by one denoiser call.

    Args:
        rows: at least one, all of one BatchKey, none done.
    """
    with torch.inference_mode():
        return [row.advanced(result) for result, row in zip(*_evaluate(denoiser, rows), strict=True)]


def _guided(output: Tensor, rows: Sequence[Row]) -> list[Tensor]:
    """The network's output of each row, its two places combined where it is guided."""
    parts = zip(output.split([len(row.told) for row in rows]), rows, strict=True)
    return [guide(part[0], part[1], row.scale) if row.guided else part[0] for part, row in parts]


def sample(denoiser: Denoiser, row: Row, on_step: Callable[[Row], None] | None = None) -> Row:
    """The finished row. `on_step` is called after each solver step (an exception from it ends the loop)."""
    while not row.done:
        before = row.step
        (row,) = advance(denoiser, [row])
        if on_step is not None and row.step > before:
            on_step(row)
    return row

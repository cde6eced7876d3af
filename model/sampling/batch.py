"""Rows of many requests through ONE denoiser call.

Each row asks for one evaluation at its own noise level; a guided row takes two places in the call, one unconditional
and one conditional. Nothing here mixes rows, so a row's result does not depend on its company beyond float rounding.

Legend: R rows, B places in the call (R to 2R), T frames, C channels; h, w latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.backends.protocol import Denoiser
from model.sampling.guidance import guide
from model.sampling.precondition import over, precondition, slope
from model.sampling.row import Row
from model.sampling.solvers import Latents


def places(rows: Sequence[Row]) -> int:
    """How many places of the denoiser's batch the rows take."""
    return sum(len(row.conditions) for row in rows)


def evaluate(denoiser: Denoiser, rows: Sequence[Row]) -> list[Latents]:
    """The ODE's slope dx/dsigma at the point each row asks for, guided, in one denoiser call.

    Args:
        rows: at least one, all of one BatchKey, none done.
    """
    wanted = [row.request() for row in rows]
    x = torch.stack([evaluation.x for evaluation in wanted])
    sigma = torch.tensor([evaluation.sigma for evaluation in wanted], dtype=torch.float32, device=x.device)
    c = precondition(sigma)
    scaled = x * over(c.c_in, x)
    place = torch.tensor([index for index, row in enumerate(rows) for _ in row.conditions], device=x.device)
    told = [condition for row in rows for condition in row.conditions]
    output = denoiser(
        scaled[place],
        c.c_noise[place],
        torch.stack([condition.context for condition in told]),
        torch.stack([condition.concat for condition in told]),
        torch.stack([condition.vector for condition in told]),
    )
    return list(slope(scaled, torch.stack(_guided(output, rows)), sigma))


def advance(denoiser: Denoiser, rows: Sequence[Row]) -> list[Row]:
    """Every row one evaluation further, by one denoiser call.

    Args:
        rows: at least one, all of one BatchKey, none done.
    """
    with torch.inference_mode():
        return [row.advanced(result) for row, result in zip(rows, evaluate(denoiser, rows), strict=True)]


def _guided(output: Tensor, rows: Sequence[Row]) -> list[Tensor]:
    """The network's output of each row, its two places combined where it is guided."""
    parts = zip(output.split([len(row.conditions) for row in rows]), rows, strict=True)
    return [guide(part[0], part[1], row.scale) if row.guided else part[0] for part, row in parts]

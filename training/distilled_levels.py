"""Noise levels of a distillation (training.objectives.consistency): which are drawn, and where the teacher steps.

Legend: N levels.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.presets import NoiseRange
from model.sampling.solvers import Sigmas


def teacher_sigmas(levels: Sigmas, substeps: int, noise: NoiseRange) -> Sigmas:
    """The teacher's levels: `substeps` steps from each of the student's to the next, even in sigma^(1/rho).

    Onto 0 there is no even step: the last stretch is laid out down to the checkpoint's smallest level, and ends at 0.
    """
    out: list[float] = []
    for high, low in itertools.pairwise(levels):
        ends = high ** (1 / noise.rho), max(low, noise.sigma_min) ** (1 / noise.rho)
        stretch = np.linspace(*ends, substeps + 1)[:-1] ** noise.rho
        out += [high, *(float(sigma) for sigma in stretch[1:].astype(np.float32))]
    return (*out, levels[-1])


def level_weights(levels: Sigmas, noise: NoiseRange, mean: float, std: float) -> Float[Tensor, " N"]:
    """Mass of ln(sigma) ~ N(mean, std^2) between each level and the next; the last reaches down to sigma_min."""
    edges = [math.log(max(sigma, noise.sigma_min)) for sigma in levels]
    below = [math.erf((edge - mean) / (math.sqrt(2) * std)) for edge in edges]
    mass = torch.tensor([high - low for high, low in itertools.pairwise(below)], dtype=torch.float64)
    return mass.clamp_min(1e-6)

"""EDM preconditioning (Karras et al. 2022) for v-prediction, with sigma_data = 1: from a raw network to a denoiser.

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))          (EDM, equation 7)

with the coefficients of the paper's appendix D: c_skip = 1 / (s^2 + 1), c_out = -s / sqrt(s^2 + 1),
c_in = 1 / sqrt(s^2 + 1), c_noise = ln(s) / 4, and the training weight (1 + s^2) / s^2. Every function takes one sigma
PER ROW, so rows at different noise levels share a denoiser call.

Legend: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """The four coefficients of equation 7, one value a row."""

    c_skip: Float[Tensor, " B"]
    c_out: Float[Tensor, " B"]
    c_in: Float[Tensor, " B"]
    c_noise: Float[Tensor, " B"]


def precondition(sigma: Float[Tensor, " B"]) -> Preconditioning:
    """The coefficients at each row's noise level (sigma > 0)."""
    variance = sigma.square() + 1
    c_in = variance.rsqrt()
    return Preconditioning(c_skip=1 / variance, c_out=-sigma * c_in, c_in=c_in, c_noise=0.25 * sigma.log())


def loss_weight(sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Weight of the squared error of D at each row's noise level: 1 / c_out^2, so F is trained at unit weight."""
    return (1 + sigma.square()) / sigma.square()


def ode_derivative(
    scaled: Float[Tensor, "B ..."], output: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"]
) -> Float[Tensor, "B ..."]:
    """dx/dsigma = (x - D(x; sigma)) / sigma of the probability-flow ODE (EDM, equation 3), row by row.

    With this preconditioning it equals c_in (sigma c_in x + F). Computed so, nothing cancels: at small sigma, x and D
    agree in nearly every digit, and dividing their difference by sigma would leave noise.

    Args:
        scaled: c_in x, the network's input.
        output: F, its output.
    """
    c_in = append_dims((sigma.square() + 1).rsqrt(), scaled)
    return (append_dims(sigma, scaled) * scaled).add_(output).mul_(c_in)


def append_dims(coefficient: Float[Tensor, " B"], like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """The coefficient shaped to multiply `like` row by row."""
    return torch.reshape(coefficient, (-1,) + (1,) * (like.ndim - 1))

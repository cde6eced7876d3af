"""The noise levels a sampler steps through: n sigmas, falling, and a final 0.

Sources: EDM (Karras et al. 2022), equation 5; Align Your Steps (Sabour et al. 2024, arXiv 2404.14507), the ten steps
published for Stable Video Diffusion. Latent Consistency Models (Luo et al. 2023, arXiv 2310.04378), algorithm 3, and
AnimateLCM (Wang et al. 2024, arXiv 2402.00769): every so many-th of the levels that were distilled.
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from model.errors import InvalidRequest
from model.params import LCM_LEVELS, ScheduleName, check_lcm_steps

Sigmas = tuple[float, ...]
"""n + 1 noise levels, strictly falling, the last 0; each exactly representable in float32."""

_AYS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
"""Align Your Steps for SVD: ten steps between eleven levels; here the last is 0 in place of 0.002."""


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Sigmas:
    """EDM, equation 5: sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, then 0.

    Raises:
        InvalidRequest: fewer than one step.
    """
    _check(steps)
    ramp = np.linspace(0.0, 1.0, steps)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _finish((high + ramp * (low - high)) ** rho)


def align_your_steps(steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0) -> Sigmas:
    """The published ten steps; for other counts, the log-linear interpolation that the paper's authors recommend.

    The levels were found for sigma from 0.002 to 700. For a checkpoint of a narrower range, the part of the curve
    inside that range is resampled, so no level lies where the network was not trained.

    Raises:
        InvalidRequest: fewer than one step.
    """
    _check(steps)
    position = np.linspace(0.0, 1.0, len(_AYS_SVD))
    levels = np.log(_AYS_SVD)
    first, last = np.interp(-np.log([sigma_max, sigma_min]), -levels, position)
    return _finish(np.exp(np.interp(np.linspace(first, last, steps + 1)[:-1], position, levels)))


def lcm_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Sigmas:
    """Every (40 // steps)-th of 40 Karras levels, from the top; then 0.

    Raises:
        InvalidRequest: fewer than one step, or more than there are levels.
    """
    check_lcm_steps(steps)
    _check(steps)
    levels = karras_sigmas(LCM_LEVELS, sigma_min, sigma_max, rho)
    return (*levels[: steps * (LCM_LEVELS // steps) : LCM_LEVELS // steps], 0.0)


def make_schedule(name: ScheduleName, steps: int, *, sigma_min: float, sigma_max: float, rho: float) -> Sigmas:
    """The schedule called `name`, over a checkpoint's range.

    Raises:
        InvalidRequest: no schedule is called that, or fewer than one step.
    """
    if name == "karras":
        return karras_sigmas(steps, sigma_min, sigma_max, rho)
    if name == "align-your-steps":
        return align_your_steps(steps, sigma_min, sigma_max)
    if name == "lcm":
        return lcm_sigmas(steps, sigma_min, sigma_max, rho)
    raise InvalidRequest(f"schedule must be one of {', '.join(get_args(ScheduleName))}, not {name!r}", param="schedule")


def _check(steps: int) -> None:
    if steps < 1:
        raise InvalidRequest(f"num_inference_steps must be at least 1, not {steps}", param="num_inference_steps")


def _finish(levels: np.ndarray) -> Sigmas:
    return (*(float(level) for level in levels.astype(np.float32)), 0.0)

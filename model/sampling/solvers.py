"""Noise levels and ODE solvers: the sigmas that a sampler steps through, and how it steps.

Schedules: n sigmas, falling, and a final 0. Sources: EDM (Karras et al. 2022), equation 5; Align Your Steps (Sabour et
al. 2024, arXiv 2404.14507), the ten steps published for Stable Video Diffusion. Latent Consistency Models (Luo et al.
2023, arXiv 2310.04378), algorithm 3, and AnimateLCM (Wang et al. 2024, arXiv 2402.00769): every so many-th of the
levels that were distilled.

Solvers of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma, as resumable state machines.

A solver never calls the network. Its state is an explicit value; from it follows at which (x, sigma) the denoiser is
needed next (`request`), and given the ODE derivative there (model.sampling.sampler.ode_derivative), the next state
(`advance`). So one request's solver can stop between any two evaluations, share a call with requests at other noise
levels, and be stored and resumed. Stochastic churn is left out; LCM, which draws noise anew at every level, draws it
from (request seed, step), so that neither batch composition nor an interruption changes a video.

Sources: EDM, Algorithm 1 (Heun; its lines 4 and 5 alone are Euler). DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095),
Algorithm 2 (2M), with alpha = 1 and lambda = -ln(sigma). Consistency models (Song et al. 2023, arXiv 2303.01469),
Algorithm 1 (multistep), with the boundary condition that EDM's preconditioning has for itself.
Legend: T frames, C channels; h, w latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from model.errors import InvalidRequest
from model.params import LCM_LEVELS, ScheduleName, SolverName, check_lcm_steps

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


def make_schedule(name: ScheduleName | str, steps: int, *, sigma_min: float, sigma_max: float, rho: float) -> Sigmas:
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


Latents = Float[Tensor, "T C h w"]
StepNoise = Callable[[int], Latents]
"""Unit noise of a step, float32 on the sample's device: a function of the request's seed and the step's number."""


@dataclass(frozen=True, slots=True)
class SolverState:
    """Where a solve stands.

    Args:
        x: the sample at noise level sigmas[step].
        step: completed steps.
        derivative: the ODE derivative at x, of Heun between its two evaluations of a step; else None.
        denoised: the denoised sample of the step before, of DPM++ 2M; else None.
    """

    x: Latents
    step: int = 0
    derivative: Latents | None = None
    denoised: Latents | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The point where a solver needs the ODE derivative: x at noise level sigma."""

    x: Latents
    sigma: float


@runtime_checkable
class Solver(Protocol):
    """A way to step through the noise levels. Stateless: everything is in the SolverState."""

    def request(self, state: SolverState, sigmas: Sigmas) -> Evaluation:
        """The evaluation needed next. The state must not be finished (step < len(sigmas) - 1)."""
        ...

    def advance(
        self, state: SolverState, sigmas: Sigmas, derivative: Latents, noise: StepNoise | None = None
    ) -> SolverState:
        """The state after the requested evaluation; `derivative` is dx/dsigma there.

        Args:
            noise: unit noise of a step, for a stochastic solver; an ODE solver needs none.
        """
        ...

    def evaluations_left(self, state: SolverState, sigmas: Sigmas) -> int:
        """How many evaluations remain until the end."""
        ...


class Euler:
    """First order, one evaluation a step (Algorithm 1, lines 4 and 5)."""

    def request(self, state: SolverState, sigmas: Sigmas) -> Evaluation:
        """The current sample and level."""
        return Evaluation(state.x, sigmas[state.step])

    def advance(
        self, state: SolverState, sigmas: Sigmas, derivative: Latents, noise: StepNoise | None = None
    ) -> SolverState:
        """One step along the derivative."""
        sigma, sigma_next = sigmas[state.step], sigmas[state.step + 1]
        return SolverState(state.x + (sigma_next - sigma) * derivative, state.step + 1)

    def evaluations_left(self, state: SolverState, sigmas: Sigmas) -> int:
        """One for each step left."""
        return len(sigmas) - 1 - state.step


class Heun:
    """Second order, two evaluations a step; the last step, onto sigma = 0, is Euler's (Algorithm 1, line 6)."""

    def request(self, state: SolverState, sigmas: Sigmas) -> Evaluation:
        """The current sample; then, for the correction, Euler's guess of the next."""
        sigma, sigma_next = sigmas[state.step], sigmas[state.step + 1]
        if state.derivative is None:
            return Evaluation(state.x, sigma)
        return Evaluation(state.x + (sigma_next - sigma) * state.derivative, sigma_next)

    def advance(
        self, state: SolverState, sigmas: Sigmas, derivative: Latents, noise: StepNoise | None = None
    ) -> SolverState:
        """Store the first derivative; with the second, step along their mean (lines 7 and 8)."""
        sigma, sigma_next = sigmas[state.step], sigmas[state.step + 1]
        if state.derivative is None and sigma_next > 0:
            return replace(state, derivative=derivative)
        mean = derivative if state.derivative is None else (state.derivative + derivative) / 2
        return SolverState(state.x + (sigma_next - sigma) * mean, state.step + 1)

    def evaluations_left(self, state: SolverState, sigmas: Sigmas) -> int:
        """Two for each step left, less one for the last, less one if the current step is half done."""
        steps_left = len(sigmas) - 1 - state.step
        return max(0, 2 * steps_left - 1 - (state.derivative is not None))


class DPMpp2M:
    """Second order from the step before, one evaluation a step; the last step, onto sigma = 0, gives D itself."""

    def request(self, state: SolverState, sigmas: Sigmas) -> Evaluation:
        """The current sample and level."""
        return Evaluation(state.x, sigmas[state.step])

    def advance(
        self, state: SolverState, sigmas: Sigmas, derivative: Latents, noise: StepNoise | None = None
    ) -> SolverState:
        """x_next = (sigma_next / sigma) x + (1 - sigma_next / sigma) D, D extrapolated from the last two samples."""
        sigma, sigma_next = sigmas[state.step], sigmas[state.step + 1]
        denoised = extrapolated = state.x - sigma * derivative
        if state.denoised is not None and sigma_next > 0:
            # r is the step before over this one, in lambda; Algorithm 2's D_i.
            r = math.log(sigmas[state.step - 1] / sigma) / math.log(sigma / sigma_next)
            extrapolated = denoised + (denoised - state.denoised) / (2 * r)
        ratio = sigma_next / sigma
        return SolverState(ratio * state.x + (1 - ratio) * extrapolated, state.step + 1, denoised=denoised)

    def evaluations_left(self, state: SolverState, sigmas: Sigmas) -> int:
        """One for each step left."""
        return len(sigmas) - 1 - state.step


class LCM:
    """Multistep consistency sampling: to the clean sample in one evaluation, then noise anew up to the next level.

    Of EDM's preconditioning c_skip goes to 1 and c_out to 0 with sigma, so that D itself is the consistency function f
    of a distilled checkpoint. The ODE derivative determines it: D = x - sigma dx/dsigma.
    """

    def request(self, state: SolverState, sigmas: Sigmas) -> Evaluation:
        """The current sample and level."""
        return Evaluation(state.x, sigmas[state.step])

    def advance(
        self, state: SolverState, sigmas: Sigmas, derivative: Latents, noise: StepNoise | None = None
    ) -> SolverState:
        """x_next = D + sigma_next z; after the last level, D."""
        sigma, sigma_next = sigmas[state.step], sigmas[state.step + 1]
        denoised = state.x - sigma * derivative
        if sigma_next > 0:
            assert noise is not None, "LCM draws noise at every level but the last"
            denoised = denoised + sigma_next * noise(state.step)
        return SolverState(denoised, state.step + 1)

    def evaluations_left(self, state: SolverState, sigmas: Sigmas) -> int:
        """One for each step left."""
        return len(sigmas) - 1 - state.step


SOLVERS: dict[SolverName, Solver] = {"euler": Euler(), "heun": Heun(), "dpmpp-2m": DPMpp2M(), "lcm": LCM()}
"""Adding a solver is one class and one line here (and its name in model.params)."""


def solver(name: SolverName) -> Solver:
    """The solver called `name`.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in SOLVERS:
        raise InvalidRequest(f"solver must be one of {', '.join(SOLVERS)}, not {name!r}", param="solver")
    return SOLVERS[name]


def evaluations(name: SolverName, steps: int) -> int:
    """Denoiser evaluations of a whole solve of `steps` steps (a guided one counted once)."""
    return 2 * steps - 1 if name == "heun" else steps

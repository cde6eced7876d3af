"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma, as resumable state machines.

A solver never calls the network. Its state is an explicit value; from it follows at which (x, sigma) the denoiser is
needed next (`request`), and given the ODE derivative there (model.sampling.sampler.ode_derivative), the next state
(`advance`). So one request's solver can stop between any two evaluations, share a call with requests at other noise
levels, and be stored and resumed. Stochastic churn is left out; LCM, which draws noise anew at every level, draws it
from (request seed, step), so that neither batch composition nor an interruption changes a video.

Sources: EDM (Karras et al. 2022), Algorithm 1 (Heun; its lines 4 and 5 alone are Euler). DPM-Solver++ (Lu et al. 2022,
arXiv 2211.01095), Algorithm 2 (2M), with alpha = 1 and lambda = -ln(sigma). Consistency models (Song et al. 2023,
arXiv 2303.01469), Algorithm 1 (multistep), with the boundary condition that EDM's preconditioning has for itself.
Legend: T frames, C channels; h, w latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from model.errors import InvalidRequest
from model.params import SolverName
from model.sampling.schedule import Sigmas

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

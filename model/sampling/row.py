"""A Row: one request in flight, as a value that can stop and resume between any two denoiser evaluations.

Everything that distinguishes one request from another is in its row: noise levels, place among them, solver, guidance,
conditioning. So rows in one denoiser call may differ in all of these; they share only their BatchKey.

Legend: T frames, C latent channels, K concatenated condition channels, N context tokens, D their width, V vector
scalars; h, w latent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from model.backends.protocol import Kept
from model.lora.entry import LoraUse
from model.params import SolverName
from model.sampling.guidance import needs_unconditional
from model.sampling.schedule import Sigmas
from model.sampling.solvers import Evaluation, Latents, SolverState, solver
from model.shapes import LatentShape


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What rows must have in common to share a denoiser call: checkpoint, latent shape, dtype, LoRA and strength."""

    model: str
    latent: LatentShape
    dtype: str
    lora: LoraUse | None = None


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the network is told besides the noisy latents.

    Args:
        context: cross-attention tokens.
        concat: latents concatenated to the noisy ones, frame by frame; K may be 0.
        vector: scalars embedded beside the timestep.
    """

    context: Float[Tensor, "N D"]
    concat: Float[Tensor, "T K h w"]
    vector: Float[Tensor, " V"]

    def unconditional(self) -> Conditioning:
        """For the unconditional pass: both image paths zeroed, the vector kept (as the published models do)."""
        return Conditioning(torch.zeros_like(self.context), torch.zeros_like(self.concat), self.vector)


@dataclass(frozen=True, slots=True)
class Row:
    """A request's resumable state; `begin` makes one, `advanced` the next.

    Args:
        key: which rows it may share a call with.
        solver: which solver steps it.
        sigmas: its noise levels, ending in 0.
        state: the solver's state, float32, on the denoiser's device.
        conditions: what each of its evaluations is told: (unconditional, conditional), or (conditional,) unguided.
        scale: guidance scale of each frame.
        seed: what its noise came from.
        interval: noise levels (low, high] at which it is guided; None for all (Kynkaanniemi et al. 2024,
            arXiv 2404.07724). Outside, the conditional output is taken as it is.
        kept: features of an evaluation before, where the denoiser reuses them (model.reuse).
    """

    key: BatchKey
    solver: SolverName
    sigmas: Sigmas
    state: SolverState
    conditions: tuple[Conditioning, ...]
    scale: Float[Tensor, " T"]
    seed: int
    interval: tuple[float, float] | None = None
    kept: Kept | None = None

    @classmethod
    def begin(
        cls,
        key: BatchKey,
        *,
        solver: SolverName,
        sigmas: Sigmas,
        noise: Latents,
        conditioning: Conditioning,
        scale: Float[Tensor, " T"],
        seed: int,
    ) -> Row:
        """A row at its first noise level: unit noise scaled to sqrt(1 + sigma_max^2), as the models were trained."""
        conditions: tuple[Conditioning, ...] = (conditioning,)
        if needs_unconditional(scale):
            conditions = (conditioning.unconditional(), conditioning)
        start = SolverState(noise * (sigmas[0] ** 2 + 1) ** 0.5)
        return cls(key, solver, sigmas, start, conditions, scale.to(noise.device), seed)

    @property
    def sigma(self) -> float:
        """The noise level of the next evaluation; 0 once done."""
        half_done = self.state.slope is not None
        return self.sigmas[min(self.step + half_done, self.total)]

    @property
    def told(self) -> tuple[Conditioning, ...]:
        """What the next evaluation tells the network, one for each place it takes in a call."""
        if self.interval is not None and not self.interval[0] < self.sigma <= self.interval[1]:
            return self.conditions[-1:]
        return self.conditions

    @property
    def guided(self) -> bool:
        """Whether the next evaluation takes two places of the denoiser's batch."""
        return len(self.told) == 2

    def unguided(self) -> Row:
        """The row without its unconditional pass: one place in a call."""
        return replace(self, conditions=self.conditions[-1:], scale=torch.ones_like(self.scale))

    @property
    def step(self) -> int:
        """Completed solver steps."""
        return self.state.step

    @property
    def total(self) -> int:
        """Solver steps in all."""
        return len(self.sigmas) - 1

    @property
    def done(self) -> bool:
        """Whether the latents are clean."""
        return self.step >= self.total

    @property
    def evaluations_left(self) -> int:
        """Denoiser evaluations still needed (a guided one counted once)."""
        return solver(self.solver).evaluations_left(self.state, self.sigmas)

    @property
    def latents(self) -> Latents:
        """The current latents, scaled as the diffusion model sees them; the result once done."""
        return self.state.x

    def request(self) -> Evaluation:
        """The evaluation needed next."""
        return solver(self.solver).request(self.state, self.sigmas)

    def advanced(self, slope: Latents) -> Row:
        """The row after the requested evaluation gave the ODE's slope there."""
        return replace(self, state=solver(self.solver).advance(self.state, self.sigmas, slope))

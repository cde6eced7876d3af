"""A Row: one request in flight, as a value that can stop and resume between any two denoiser evaluations.

Everything that distinguishes one request from another is in its row: noise levels, position among them, solver,
guidance, conditioning. So rows in one denoiser call may differ in all of these; they share only their BatchKey.

Classifier-free guidance has a scale that runs over the FRAMES of a clip: the first frame is nearly given by the picture
and wants little of it; later ones want more (paper, appendix D.3; SV3D, Voleti et al. 2024, section 3.3, for the
triangle). Guiding the network's output is the same as guiding the denoised sample, since equation 7 of EDM is linear
in it.

A row's checkpoint (`save_state`, `load_state`) is a safetensors file of what cannot be computed again: the sample, the
solver's history and the step, in float32. The conditioning is encoded again from the request on resume, so a state is
small (25 x 4 x 72 x 128 latents: 3.7 MB) and holds nothing of the picture's pixels. A fingerprint of what the steps
depend on refuses a state of another request, solver or checkpoint.

Legend: T frames, C latent channels, K concatenated condition channels, N context tokens, D their width, V vector
scalars; h, w latent.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass, replace

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from model.denoiser import CachedFeatures, Conditioning
from model.errors import InvalidRequest
from model.lora.catalog import LoraUse
from model.params import SolverName
from model.sampling.solvers import Evaluation, Latents, Sigmas, SolverState, solver
from model.shapes import LatentShape
from model.tasks import GuidanceShape


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What rows must have in common to share a denoiser call: checkpoint, latent shape, dtype, LoRA and strength."""

    model: str
    latent: LatentShape
    dtype: str
    lora: LoraUse | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A request's resumable state; `begin` makes one, `advanced` the next.

    Args:
        key: which rows it may share a call with.
        solver: which solver steps it.
        sigmas: its noise levels, ending in 0.
        state: the solver's state, float32, on the denoiser's device.
        conditions: its batch slots' conditioning: (unconditional, conditional), or (conditional,) unguided.
        scale: guidance scale of each frame.
        seed: of its noise.
        guidance_interval: noise levels (low, high] at which it is guided; None for all (Kynkaanniemi et al. 2024,
            arXiv 2404.07724). Outside, the conditional output is taken as it is.
        cached_features: of an evaluation before, where the denoiser reuses them (model.optimized.feature_cache).
    """

    key: BatchKey
    solver: SolverName
    sigmas: Sigmas
    state: SolverState
    conditions: tuple[Conditioning, ...]
    scale: Float[Tensor, " T"]
    seed: int
    guidance_interval: tuple[float, float] | None = None
    cached_features: CachedFeatures | None = None

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
        unit_start: bool = False,
    ) -> Row:
        """A row at its first noise level: unit noise scaled to sqrt(1 + sigma_max^2), as the models were trained.

        Args:
            unit_start: scaled to sigma_max instead, where the checkpoint's scheduler says so.
        """
        conditions: tuple[Conditioning, ...] = (conditioning,)
        if needs_unconditional(scale):
            conditions = (conditioning.unconditional(), conditioning)
        start = SolverState(noise * (sigmas[0] if unit_start else (sigmas[0] ** 2 + 1) ** 0.5))
        return cls(key, solver, sigmas, start, conditions, scale.to(noise.device), seed)

    @property
    def sigma(self) -> float:
        """The noise level of the next evaluation; 0 once done."""
        half_done = self.state.derivative is not None
        return self.sigmas[min(self.step + half_done, self.num_steps)]

    @property
    def active_conditions(self) -> tuple[Conditioning, ...]:
        """The conditioning of the next evaluation, one for each batch slot it takes in a call."""
        interval = self.guidance_interval
        if interval is not None and not interval[0] < self.sigma <= interval[1]:
            return self.conditions[-1:]
        return self.conditions

    @property
    def guided(self) -> bool:
        """Whether the next evaluation takes two slots of the denoiser's batch."""
        return len(self.active_conditions) == 2

    def unguided(self) -> Row:
        """The row without its unconditional pass: one slot in a call."""
        return replace(self, conditions=self.conditions[-1:], scale=torch.ones_like(self.scale))

    @property
    def step(self) -> int:
        """Completed solver steps."""
        return self.state.step

    @property
    def num_steps(self) -> int:
        """Solver steps in all."""
        return len(self.sigmas) - 1

    @property
    def done(self) -> bool:
        """Whether the latents are clean."""
        return self.step >= self.num_steps

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

    def advanced(self, derivative: Latents) -> Row:
        """The row after the requested evaluation; `derivative` is dx/dsigma there."""
        return replace(self, state=solver(self.solver).advance(self.state, self.sigmas, derivative, self._step_noise))

    def _step_noise(self, step: int) -> Latents:
        """Unit noise of a step, drawn on the CPU from (seed, step): the same in any batch and after a resume."""
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{step}".encode()).digest()[:8], "big") >> 1
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(self.key.latent.as_tuple(), generator=generator).to(self.latents.device)


CHECKPOINT_KEY = "model"
"""In a state's metadata: NAME@VERSION of the checkpoint that made it, to be read without torch."""
_STEP, _FINGERPRINT = "step", "fingerprint"
_HISTORY = {"slope": "derivative", "denoised": "denoised"}
"""Stored tensor -> field of the SolverState."""


def save_state(row: Row) -> bytes:
    """The row's checkpoint, as bytes for `load_state`."""
    state = row.state
    tensors = {"x": state.x}
    tensors |= {name: tensor for name, field in _HISTORY.items() if (tensor := getattr(state, field)) is not None}
    ready = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    ready[_STEP] = torch.tensor(state.step)
    ready[_FINGERPRINT] = torch.frombuffer(bytearray(fingerprint(row)), dtype=torch.uint8)
    return save(ready, metadata={CHECKPOINT_KEY: row.key.model})


def load_state(fresh: Row, stored: bytes) -> Row:
    """The row whose checkpoint `stored` is.

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
    if mark != fingerprint(fresh) or x.shape != fresh.latents.shape or not 0 <= step <= fresh.num_steps:
        raise InvalidRequest(
            "the stored state is of another request, checkpoint or set of settings; begin anew", param="resume_from"
        )
    device = fresh.latents.device
    history = {field: tensors[name].to(device) for name, field in _HISTORY.items() if name in tensors}
    return replace(fresh, state=SolverState(x.to(device), step, **history))


def fingerprint(row: Row) -> bytes:
    """A SHA-256 over what the row's steps depend on, besides its pictures and its text."""
    fields = [row.key.model, astuple(row.key.latent), row.key.dtype, row.solver, row.sigmas, row.seed]
    fields += [row.scale.tolist(), *([row.guidance_interval] if row.guidance_interval is not None else [])]
    fields += [astuple(row.key.lora)] if row.key.lora is not None else []
    return hashlib.sha256(json.dumps(fields).encode()).digest()


def guidance_scale(shape: GuidanceShape, low: float, high: float, num_frames: int) -> Float[Tensor, " T"]:
    """The scale of each frame.

    Args:
        shape: linear: `low` at the first frame, `high` at the last, in either order of size. constant: `high`
            everywhere. triangular: `low` at both ends, `high` in the middle (for closed orbits).
    """
    if shape == "constant":
        return torch.full((num_frames,), high)
    if shape == "linear":
        return torch.linspace(low, high, num_frames)
    along = torch.linspace(0.0, 1.0, num_frames)
    return low + (high - low) * (1 - (2 * along - 1).abs())


def needs_unconditional(scale: Float[Tensor, " T"]) -> bool:
    """Whether any frame's scale differs from 1; where none does, the unconditional output would cancel out."""
    return not bool((scale == 1).all())


def guide(
    unconditional: Float[Tensor, "T C h w"], conditional: Float[Tensor, "T C h w"], scale: Float[Tensor, " T"]
) -> Float[Tensor, "T C h w"]:
    """Frame by frame: unconditional + scale (conditional - unconditional) (Ho and Salimans 2022, equation 6)."""
    return (conditional - unconditional).mul_(scale[:, None, None, None]).add_(unconditional)

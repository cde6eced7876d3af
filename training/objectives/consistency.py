"""Distillation of guided sampling into a few unguided evaluations, for the solver `lcm` (docs/adr/0015).

At a few Karras levels sigma_i, the ones that the solver later steps through, the student learns where a teacher's
guided probability-flow ODE ends:

    x = y + sigma_i n;   target = the end of the teacher's solve from (x, sigma_i);   L = d(D(x; sigma_i), target)
    d(e) = sqrt(mean |e / c_out|^2 + c^2) - c                       (pseudo-Huber, as in arXiv 2310.14189)

D is the student's denoised clip (EDM, equation 7). Its c_skip goes to 1 and c_out to 0 with sigma, which is all of the
boundary condition f(x; 0) = x that consistency models ask for. Two kinds of target:

- consistency (Song et al. 2023, arXiv 2303.01469, algorithm 2): the teacher solves to sigma_(i+1), and the student
  itself, without gradient, answers there. The target network is the student of the moment, not an average
  (Song and Dhariwal 2023, arXiv 2310.14189), so a run's state is that of any other and resumes exactly.
- direct (`solve_to_end`; Luhman and Luhman 2021, arXiv 2101.02388): the teacher solves down to 0. One solve serves
  every level that it passes: (x at sigma_j on the path, the same end) for each j >= i. Nothing is bootstrapped.

Levels are drawn with the mass of ln(sigma) ~ N(P_mean, P_std^2) between a level and the next (arXiv 2310.14189),
and what a row draws follows from (seed, iteration, clip), as in training.objectives.denoise.

Legend: N points (x, sigma), T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from model.denoiser import Conditioning, CpuThreads, TorchDenoiser
from model.errors import InvalidRequest
from model.presets import NoiseRange, preset
from model.sampling.row import BatchKey, Row, guidance_scale, needs_unconditional
from model.sampling.sampler import append_dims, precondition, sample
from model.sampling.solvers import Sigmas, SolverState, lcm_sigmas
from model.shapes import LatentShape
from model.tasks import task
from training.config import ConsistencyConfig
from training.data.seeding import generator
from training.distilled_levels import level_weights, teacher_sigmas
from training.fast_blocks import speed_up
from training.initial_weights import Denoiser
from training.objectives.denoise import DenoiseObjective, denoising_error, sample_clip
from training.objectives.protocol import Batch, Decode, Examples, concat_batches

_LEVEL = 4


@dataclass(frozen=True, slots=True)
class Points:
    """What the student trains on, of one row.

    Args:
        x: noisy clips.
        sigma: their levels.
        target: clean clips.
    """

    x: Float[Tensor, "N T C h w"]
    sigma: Float[Tensor, " N"]
    target: Float[Tensor, "N T C h w"]


class ConsistencyObjective(DenoiseObjective):
    """A student at the levels that it will be sampled at, against a teacher's guided solves.

    Args:
        network: the student, at first the teacher or another denoiser of the task.
        teacher: frozen here.

    Raises:
        InvalidRequest: as DenoiseObjective.
    """

    config: ConsistencyConfig

    def __init__(
        self,
        config: ConsistencyConfig,
        network: nn.Module,
        teacher: UNetSpatioTemporalConditionModel,
        examples: Examples,
        decode: Decode | None = None,
    ) -> None:
        super().__init__(config, network, examples, decode)
        frozen: nn.Module = teacher
        frozen.requires_grad_(False)
        if config.runtime.fast_blocks:
            speed_up(frozen)
        if isinstance(network, Denoiser):
            network.mask.requires_grad_(False)  # the teacher was taught with this embedding
        self.noise_range = preset(config.preset).noise
        self.teacher = TorchDenoiser(teacher, CpuThreads(torch.get_num_threads()))
        self.levels = self._levels_at(0)

    def _levels_at(self, step: int) -> Sigmas:
        counts, noise = self.config.distil.levels, self.noise_range
        phase = min(step * len(counts) // self.config.optim.iterations, len(counts) - 1)
        return lcm_sigmas(counts[phase], noise.sigma_min, noise.sigma_max, noise.rho)

    def enter(self, step: int) -> None:
        """The curriculum's levels; all of the UNet trains from the first iteration to the last."""
        self.levels = self._levels_at(step)

    @property
    def _alone(self) -> bool:
        """Rows take turns: each one's solve keeps the cores busy."""
        return False

    def noise(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """A level [B] of the curriculum's for each clip, and noise like the clips."""
        seed = self.config.optim.seed
        draws = [generator(seed, step, zlib.crc32(name.encode()), _LEVEL) for name in batch.names]
        weights = level_weights(self.levels, self.noise_range, self.config.p_mean, self.config.p_std)
        picked = [int(torch.multinomial(weights, 1, generator=draw)) for draw in draws]
        noise = torch.stack([torch.randn(batch.clean.shape[1:], generator=draw) for draw in draws])
        return torch.tensor([self.levels[level] for level in picked]), noise

    def _share(self, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
        if batch.pictures:
            raise InvalidRequest("a clip's motion is distilled; set data.image_share=0", param="set")
        device = self.unet.device
        low = self.config.runtime.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            errors = [
                self._row_error(row.to(device), float(level), unit.to(device))
                for row, level, unit in zip(_split(batch), sigma, noise, strict=True)
            ]
        return torch.stack(errors).mean() * batch.rows / self.config.optim.batch

    def _row_error(self, row: Batch, sigma: float, noise: Tensor) -> Tensor:
        """The mean pseudo-Huber distance of a row's points."""
        points = self.points(row, sigma, noise)
        repeated = dataclasses.replace(concat_batches([row] * len(points.sigma)), clean=points.target)
        unit = (points.x - points.target) / append_dims(points.sigma, points.x)
        errors = denoising_error(self.unet, repeated, points.sigma, unit)
        huber = self.config.distil.huber
        return ((errors + huber**2).sqrt() - huber).mean()

    def points(self, row: Batch, sigma: float, noise: Float[Tensor, "T C h w"]) -> Points:
        """Solve from the row's clip at level `sigma`, and pair what the solve passes with where it ends."""
        settings, start = self.config.distil, self.levels.index(sigma)
        last = len(self.levels) - 1 if settings.solve_to_end else start + 1
        x = row.clean[0] + sigma * noise
        path, end = self._solve(
            row, x, teacher_sigmas(self.levels[start : last + 1], settings.substeps, self.noise_range)
        )
        if not settings.solve_to_end:
            end = self._answer(row, end, self.levels[last])
        passed = torch.tensor(self.levels[start : start + len(path)], device=x.device)
        return Points(torch.stack(path), passed, end.expand(len(path), *end.shape))

    def _solve(self, row: Batch, x: Tensor, sigmas: Sigmas) -> tuple[list[Tensor], Tensor]:
        """The teacher's guided solve: the samples at the student's levels from the first on, and the end."""
        config, spec = self.config, task(self.config.task)
        frames, channels, height, width = x.shape
        scale = guidance_scale(spec.guidance, config.distil.min_guidance, config.distil.max_guidance, frames)
        condition = Conditioning(row.context[0].detach(), row.concat[0].detach(), row.vector[0])
        conditions = (condition.unconditional(), condition) if needs_unconditional(scale) else (condition,)
        key = BatchKey("teacher", LatentShape(frames, channels, height, width), "float32")
        solve = Row(key, "dpmpp-2m", sigmas, SolverState(x), conditions, scale.to(x.device), seed=0)
        passed: list[Tensor] = [x]

        def note(at: Row) -> None:
            if at.step % config.distil.substeps == 0 and not at.done:
                passed.append(at.latents)

        end = sample(self.teacher, solve, note).latents
        return [one.clone() for one in passed], end.clone()  # no longer tensors of inference mode

    def _answer(self, row: Batch, x: Tensor, sigma: float) -> Tensor:
        """The student's own denoised clip, without gradient; at level 0, x itself.

        The network is called either way, since sharded processes have to make equally many calls.
        """
        level = torch.tensor([sigma or self.levels[-2]], device=x.device)
        c = precondition(level)
        with torch.no_grad():
            out = self.unet(
                torch.cat([append_dims(c.c_in, x[None]) * x[None], row.concat], dim=2),
                c.c_noise,
                encoder_hidden_states=row.context,
                added_time_ids=row.vector,
                return_dict=False,
            )[0]
        return (c.c_skip * x + c.c_out * out[0].float()) if sigma else x

    def _sample(self, row: Batch, noise: NoiseRange) -> Float[Tensor, "T C h w"]:
        steps, seed = self.config.distil.default_steps, self.config.optim.seed
        return sample_clip(self.unet, row, noise, steps, seed, solver="lcm", schedule="lcm")


def _split(batch: Batch) -> list[Batch]:
    """The rows of a batch one by one."""
    return [
        dataclasses.replace(
            batch,
            clean=batch.clean[k : k + 1],
            concat=batch.concat[k : k + 1],
            context=batch.context[k : k + 1],
            vector=batch.vector[k : k + 1],
            names=batch.names[k : k + 1],
            rows=1,
        )
        for k in range(len(batch.names))
    ]

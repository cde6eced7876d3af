"""How an in-process engine is set up. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from model.errors import InvalidRequest

DtypeName = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Choices that hold for an engine's life; each is written into every video's manifest where it can change pixels.

    Args:
        max_rows: requests being encoded, denoised or decoded at once; the others wait or are parked.
        max_batch: batch slots of one denoiser call, at most (a guided request takes two); None lets the measured profile
            choose.
        backend: which denoiser (model.backends.registry); `auto` takes what the folder holds, weights or graphs.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`.
        dtype: of the networks' weights.
        threads: CPU threads at work on one thing; None for as many as there are cores to run on.
        mux_threads: threads that encode finished videos beside the step loop.
        warm_up: run every network once at the start and measure what is not known yet, so that the first request is
            not the slow one and has an honest estimate.
        deterministic: the same bits whatever a request shares its calls with, and wherever it was interrupted.
        checkpoint_every_s: seconds between two Checkpointed events of a job; None for none.
        attention: kernel of a denoiser in torch (model.optimized.attention); `auto` measures on a GPU, and is
            torch's own choice on a CPU and in deterministic mode.
        reuse_every: evaluations for which a row's deep features serve (model.optimized.feature_cache); 1 reuses
        none. Costs quality.
        guidance_interval: noise levels (low, high] at which rows are guided; None for all. Costs quality.
        vram_budget_gib: memory of the GPU to stay within (model.memory.plan); None for no plan.
    """

    max_rows: int = 16
    max_batch: int | None = None
    backend: str = "auto"
    device: str = "auto"
    dtype: DtypeName = "float32"
    threads: int | None = None
    mux_threads: int = 1
    warm_up: bool = True
    deterministic: bool = False
    checkpoint_every_s: float | None = 5.0
    attention: str = "auto"
    reuse_every: int = 1
    guidance_interval: tuple[float, float] | None = None
    vram_budget_gib: float | None = None

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            InvalidRequest: a count below 1, a negative time, an empty interval, or reuse in deterministic mode.
        """
        for name in ("max_rows", "max_batch", "mux_threads", "threads", "reuse_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(f"{name} must be at least 1, not {value}", param=name)
        if self.checkpoint_every_s is not None and self.checkpoint_every_s < 0:
            raise InvalidRequest("checkpoint_every_s must be 0 or more", param="checkpoint_every_s")
        if self.reuse_every > 1 and self.deterministic:
            raise InvalidRequest(
                "reused features are not stored, so an interrupted video would differ; reuse them without "
                "--deterministic",
                param="reuse_every",
            )
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            raise InvalidRequest("a guidance interval is two noise levels, 0 <= LOW < HIGH", param="guidance_interval")
        if self.vram_budget_gib is not None and self.vram_budget_gib <= 0:
            raise InvalidRequest("a budget of GPU memory must be above 0", param="vram_budget")

    @property
    def cores(self) -> int:
        """CPU threads at work at once."""
        return self.threads or usable_cores()

    @property
    def fixed_threads(self) -> int:
        """Threads of every operation in deterministic mode, since their number changes the last bits."""
        return max(1, self.cores // 2)


def usable_cores() -> int:
    """Processors this process may run on, or as many as OMP_NUM_THREADS says."""
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdecimal() and int(requested) > 0:
        return int(requested)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

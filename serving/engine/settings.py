"""How an in-process engine is set up. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.errors import InvalidRequest

DtypeName = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Choices that hold for an engine's life; each is written into every video's manifest where it can change pixels.

    Args:
        max_rows: requests being encoded, denoised or decoded at once; the others wait.
        max_batch: rows in one denoiser call, at most.
        backend: which denoiser (model.backends.makers).
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`.
        dtype: of the networks' weights.
        threads: torch's threads for one operation; None leaves torch's own choice.
        mux_threads: threads that encode finished videos beside the step loop.
        warm_up: run one short generation per model at the start, so the first request is not the slow one.

    Raises:
        InvalidRequest: a count below 1.
    """

    max_rows: int = 4
    max_batch: int = 4
    backend: str = "torch"
    device: str = "auto"
    dtype: DtypeName = "float32"
    threads: int | None = None
    mux_threads: int = 1
    warm_up: bool = True

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_batch", "mux_threads", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(f"{name} must be at least 1, not {value}", param=name)

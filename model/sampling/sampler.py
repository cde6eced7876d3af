"""The plain loop: one row from noise to clean latents. What the engine does for many rows, readable in four lines."""

from __future__ import annotations

from collections.abc import Callable

from model.backends.protocol import Denoiser
from model.sampling.batch import advance
from model.sampling.row import Row


def sample(denoiser: Denoiser, row: Row, on_step: Callable[[Row], None] | None = None) -> Row:
    """The finished row. `on_step` is called after each solver step (an exception from it ends the loop)."""
    while not row.done:
        before = row.step
        (row,) = advance(denoiser, [row])
        if on_step is not None and row.step > before:
            on_step(row)
    return row

"""diffusers' pipeline in a process of its own, as its users run it: with the C library's heap as it comes.

Our engine tells the C library to keep freed memory (model.platform), for its whole process; a pipeline beside
it would be
faster for that, too. `kept_memory=True` gives the other process the same heap, to tell this gain from the others.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import torch
from PIL import Image

from benchmarks.pipeline import Pipeline


@dataclass(frozen=True)
class _Call:
    """One call: of `video` or `latents`, with the request and its picture."""

    call: str
    params: Any
    still: Image.Image


class PipelineAside:
    """A Pipeline (benchmarks.pipeline) on the CPU, in a process that ends with this object's `with` block.

    Args:
        folder: a checkpoint in diffusers' format.
        still: the picture of every request, of the clip's size; may be replaced between two calls.
        kept_memory: whether its process keeps freed memory, as our engine's does.
    """

    def __init__(self, folder: Path, still: Image.Image, *, kept_memory: bool = False) -> None:
        self.still = still
        self.processor_s = 0.0
        """Seconds of all cores that the last call took."""
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        threads = torch.get_num_threads()
        self._process = context.Process(target=_serve, args=(there, folder, still, kept_memory, threads), daemon=True)
        self._process.start()
        there.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the process."""
        self._here.close()
        self._process.join(timeout=10)
        self._process.kill()

    def video(self, params: Any) -> tuple[np.ndarray, float]:
        """See Pipeline.video; the clock is the machine's, and so the same here."""
        return cast("tuple[np.ndarray, float]", self._ask("video", params))

    def latents(self, params: Any) -> torch.Tensor:
        """See Pipeline.latents."""
        return torch.from_numpy(self._ask("latents", params))

    def _ask(self, call: str, params: Any) -> Any:
        self._here.send(_Call(call, params, self.still))
        result, self.processor_s = self._here.recv()
        return result


def _serve(pipe: Connection, folder: Path, still: Image.Image, kept_memory: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    if kept_memory:
        from model.platform import retain_freed_memory

        retain_freed_memory()
    pipeline = Pipeline(folder, still, "cpu")
    while True:
        try:
            message: _Call = pipe.recv()
        except EOFError:
            return
        pipeline.still = message.still
        began = time.process_time()
        if message.call == "video":
            result: Any = pipeline.video(message.params)
        else:
            result = pipeline.latents(message.params).numpy()
        pipe.send((result, time.process_time() - began))

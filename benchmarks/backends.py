"""Seconds of a guided denoiser call and of a decoded chunk by each backend, and how far each is from torch's.

    python -m benchmarks.backends [MODEL ...] [--backends torch onnxruntime openvino torch-compiled] [--calls 5]

Without MODEL: every task at the shipped size with random weights (speed does not know the difference). The backends
take turns, so that a machine that slows down slows all; wall and processor seconds are medians. The first call, which
compiles or warms, is not counted; exporting and compiling are the seconds until ready. The second start, from the
cache, is measured too. Prints a table for RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.entry import run_main
from export.onnx import ExportSize, components, export_component, rewrite
from export.parity import RUNTIMES
from model.backends.registry import make_denoiser
from model.catalog import ModelEntry
from model.checkpoint import load
from model.denoiser import CpuThreads, DenoiserInputs
from model.optimized.fused_blocks import fuse
from model.optimized.rewrites import relative_difference
from model.platform import retain_freed_memory
from model.presets import preset
from model.shapes import VAE_STRIDE, VideoShape, even_chunks
from model.sources.source import find
from model.tasks import TASKS
from model.testing import build_random

SLOTS = 2
"""A guided request's: one unconditional and one conditional."""


@dataclass
class Backend:
    """One backend's work on one checkpoint, and what was measured of it."""

    call: Callable[[], Tensor]
    decode: Callable[[], Tensor]
    ready_s: float
    second_start_s: float
    wall: dict[str, list[float]] = field(default_factory=lambda: {"call": [], "decode": []})
    processor: dict[str, list[float]] = field(default_factory=lambda: {"call": [], "decode": []})

    def time(self, what: str) -> Tensor:
        """Run the call or the decode once, timed."""
        wall, processor = time.perf_counter(), time.process_time()
        answer = (self.call if what == "call" else self.decode)()
        self.wall[what].append(time.perf_counter() - wall)
        self.processor[what].append(time.process_time() - processor)
        return answer


def inputs(entry: ModelEntry) -> DenoiserInputs:
    """Random inputs of a guided call."""
    checkpoint = load(entry, device="meta")
    config = checkpoint.unet.config
    frames, channels = entry.num_frames[0], checkpoint.latent_channels
    latent = VideoShape(frames, entry.height, entry.width).latent(channels)
    g = torch.Generator().manual_seed(0)
    size = (latent.height, latent.width)
    return DenoiserInputs(
        torch.randn(SLOTS, frames, channels, *size, generator=g),
        torch.tensor([0.8, -0.3]),
        torch.randn(SLOTS, entry.task.context_tokens, int(config["cross_attention_dim"]), generator=g),
        torch.randn(SLOTS, frames, int(config["in_channels"]) - channels, *size, generator=g),
        torch.rand(SLOTS, len(entry.task.vector), generator=g),
    )


def prepare(name: str, entry: ModelEntry, denoiser_inputs: DenoiserInputs, folder: Path) -> Backend:
    """A backend of a checkpoint, ready to be measured."""
    cores = CpuThreads(torch.get_num_threads())
    started = time.perf_counter()
    denoiser = make_denoiser(name, load(entry), cores)
    denoiser(denoiser_inputs)
    ready = time.perf_counter() - started
    started = time.perf_counter()
    denoiser = make_denoiser(name, load(entry), cores)
    denoiser(denoiser_inputs)
    second = time.perf_counter() - started
    decode = decoder(name, entry, cores, folder)
    decode()
    return Backend(lambda: denoiser(denoiser_inputs), decode, ready, second)


def decoder(name: str, entry: ModelEntry, cores: CpuThreads, folder: Path) -> Callable[[], Tensor]:
    """The decoding of one chunk: by the exported graph, or by torch's fused blocks."""
    checkpoint = load(entry)
    chunk = even_chunks(entry.num_frames[0], int(entry.defaults.get("decode_chunk_size", 8)))[0]
    size = (checkpoint.latent_channels, entry.height // VAE_STRIDE, entry.width // VAE_STRIDE)
    latents = torch.randn(chunk, *size, generator=torch.Generator().manual_seed(1))
    if name not in RUNTIMES:
        fuse(checkpoint.vae)

        def in_torch() -> Tensor:
            with torch.inference_mode():
                pixels: Tensor = checkpoint.vae.decode(latents, num_frames=chunk).sample
            return pixels

        return in_torch
    file = folder / f"{entry.name}-decoder" / "vae_decoder.onnx"
    if not file.exists():
        file.parent.mkdir()
        rewrite(checkpoint)
        parts = components(checkpoint, ExportSize(entry.height, entry.width))
        export_component(next(part for part in parts if part.name == "vae_decoder"), file.parent)
    graph = RUNTIMES[name](file, cores)
    return lambda: graph.run({"latents": latents}, (chunk, 3, entry.height, entry.width))


def measure(entry: ModelEntry, names: list[str], calls: int, folder: Path) -> None:
    """Print a row for each backend."""
    denoiser_inputs = inputs(entry)
    backends = {name: prepare(name, entry, denoiser_inputs, folder) for name in names}
    answers: dict[tuple[str, str], Tensor] = {}
    for _ in range(calls):
        for what in ("call", "decode"):
            for name, backend in backends.items():
                answers[name, what] = backend.time(what)
    for name, backend in backends.items():
        columns = [entry.name, name]
        for what in ("call", "decode"):
            apart = relative_difference(answers[name, what], answers[names[0], what])
            wall, processor = (statistics.median(times[what]) for times in (backend.wall, backend.processor))
            columns += [f"{wall:.3f}", f"{processor:.3f}", f"{apart:.1e}"]
        print("|", " | ".join([*columns, f"{backend.ready_s:.1f}", f"{backend.second_start_s:.1f}"]), "|", flush=True)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--backends", nargs="+", default=["torch", "onnxruntime", "openvino"])
    parser.add_argument("--calls", type=int, default=5)
    options = parser.parse_args()
    retain_freed_memory()  # as the engine does
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    figures = ("call s", "of a processor", "apart", "decode s", "of a processor", "apart", "ready s", "2nd start s")
    print("|", " | ".join(("model", "backend", *figures)), "|")
    print("| --- | ---", "| ---: " * len(figures), "|")
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, STILLMOTION_CACHE=str(Path(folder) / "cache")),  # so that every run exports anew
    ):
        entries = [find(name) for name in options.models] or [
            build_random(Path(folder) / name, preset("mini"), spec, num_frames=min(14, spec.frames[0]))
            for name, spec in TASKS.items()
        ]
        for entry in entries:
            measure(entry, options.backends, options.calls, Path(folder))


if __name__ == "__main__":
    run_main(main)

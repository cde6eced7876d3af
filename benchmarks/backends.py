"""Seconds of one guided denoiser call by each backend, side by side in one run, and how far each is from torch eager.

    python -m benchmarks.backends [MODEL ...] [--backends torch onnxruntime torch-compiled] [--calls 5]

Without MODEL: every task at the shipped size with random weights (speed does not know the difference). The first call,
which compiles or warms, is not counted; exporting and compiling are told apart. Prints a table for RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.entry import run_main
from model.backends.registry import make_denoiser
from model.catalog import ModelEntry
from model.checkpoint import load
from model.denoiser import CpuThreads, DenoiserInputs
from model.memory.malloc import retain_freed_memory
from model.optimized.rewrites import relative_difference
from model.presets import preset
from model.shapes import VideoShape
from model.sources.source import find
from model.tasks import TASKS
from model.testing import build_random

PLACES = 2
"""A guided request's: one unconditional and one conditional."""


def inputs(entry: ModelEntry) -> DenoiserInputs:
    checkpoint = load(entry)
    config = checkpoint.unet.config
    frames, channels = entry.num_frames[0], checkpoint.latent_channels
    latent = VideoShape(frames, entry.height, entry.width).latent(channels)
    g = torch.Generator().manual_seed(0)
    size = (latent.height, latent.width)
    return DenoiserInputs(
        torch.randn(PLACES, frames, channels, *size, generator=g),
        torch.tensor([0.8, -0.3]),
        torch.randn(PLACES, entry.task.context_tokens, int(config["cross_attention_dim"]), generator=g),
        torch.randn(PLACES, frames, int(config["in_channels"]) - channels, *size, generator=g),
        torch.rand(PLACES, len(entry.task.vector), generator=g),
    )


def measure(entry: ModelEntry, backends: list[str], calls: int) -> None:
    denoiser_inputs, expected = inputs(entry), None
    for backend in backends:
        started = time.perf_counter()
        denoiser = make_denoiser(backend, load(entry), CpuThreads(torch.get_num_threads()))
        answer = denoiser(denoiser_inputs)
        ready = time.perf_counter() - started
        took = []
        for _ in range(calls):
            started = time.perf_counter()
            denoiser(denoiser_inputs)
            took.append(time.perf_counter() - started)
        expected = answer if expected is None else expected
        apart = relative_difference(answer, expected)
        print(f"| {entry.name} | {backend} | {statistics.median(took):.3f} | {apart:.1e} | {ready:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--backends", nargs="+", default=["torch", "onnxruntime"])
    parser.add_argument("--calls", type=int, default=5)
    options = parser.parse_args()
    retain_freed_memory()  # as the engine does
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| model | backend | seconds a call | difference | seconds until ready |")
    print("| --- | --- | ---: | ---: | ---: |")
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, STILLMOTION_CACHE=str(Path(folder) / "cache")),  # so that every run exports anew
    ):
        entries = [find(name) for name in options.models] or [
            build_random(Path(folder) / name, preset("mini"), spec, num_frames=min(14, spec.frames[0]))
            for name, spec in TASKS.items()
        ]
        for entry in entries:
            measure(entry, options.backends, options.calls)


if __name__ == "__main__":
    run_main(main)

"""Concurrent callers of mixed step counts: our step batching, request batching, and diffusers in order of arrival.

    python -m benchmarks.step_batching [--model mini-image-to-video] [--callers 1 2 4 8] [--videos 2] [--think 0]

Every caller asks for `--videos` videos one after another, alternating short ones (4 steps) and long ones (12), each an
mp4 in the end. With `--think` each waits before it asks, so many seconds on average (exponential, the same for every
system); without, all ask at the same moment, and request batching answers all at the same moment, again and again. The
three systems run in turn, on the same checkpoint, picture, seeds and settings:

    step        our engine as `stillmotion serve` runs it
    request     our rows and denoiser, but batched by request: whoever waits is taken as one batch, which is run to its
                end before the next is taken
    diffusers   StableVideoDiffusionPipeline, one request at a time in the order of arrival; on a CPU in a process of
                its own, as its users run it (benchmarks.aside)

Prints throughput, latency (mean, 99th percentile) and time to the first step, for all videos and for the short ones.
With --check the final latents of `step` and `diffusers` at one caller are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.aside import PipelineAside
from benchmarks.entry import run_main
from benchmarks.pipeline import Pipeline
from model.catalog import ModelEntry
from model.media.image import fit_picture, open_picture, to_png
from model.media.video import encode_video
from model.params import Params
from model.sampling.sampler import advance, prepare_row
from model.sources.source import find
from model.vae import decode
from serving.engine.inprocess import InProcessEngine
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.protocol import Completed, EngineRequest, Stepped
from serving.engine.settings import EngineSettings

SHORT, LONG = 4, 12


@dataclass(frozen=True)
class Taken:
    """One video: seconds from its submission to its first step and to its mp4."""

    steps: int
    first_step_s: float
    total_s: float


Serve = Callable[[Params], Awaitable[Taken]]


async def load_of(
    serve: Serve, entry: ModelEntry, callers: int, videos: int, think_s: float
) -> tuple[list[Taken], float]:
    """All videos of all callers, and the seconds they took together."""

    async def caller(number: int) -> list[Taken]:
        taken, chance = [], random.Random(number)
        for turn in range(videos):
            steps = SHORT if (number + turn) % 2 == 0 else LONG
            await asyncio.sleep(think_s * chance.expovariate(1.0))
            taken.append(await serve(entry.resolve({"num_inference_steps": steps}, seed=100 * number + turn)))
        return taken

    began = time.perf_counter()
    done = await asyncio.gather(*(caller(number) for number in range(callers)))
    return [one for some in done for one in some], time.perf_counter() - began


class StepBatching:
    """Our engine."""

    def __init__(self, engine: InProcessEngine, entry: ModelEntry, png: bytes) -> None:
        self._engine, self._entry, self._png, self._count = engine, entry, png, 0

    async def __call__(self, params: Params) -> Taken:
        """Serve one request."""
        self._count += 1
        began, first = time.perf_counter(), math.nan
        async for event in self._engine.submit(
            EngineRequest(str(self._count), self._entry.name, params, (self._png,), "mp4")
        ):
            if isinstance(event, Stepped) and math.isnan(first):
                first = time.perf_counter() - began
        if not isinstance(event, Completed):
            raise SystemExit(f"a request ended as {event}")
        return Taken(params.num_inference_steps, first, time.perf_counter() - began)


class RequestBatching:
    """Our rows and denoiser; a batch is whoever waits, and runs to its end."""

    def __init__(self, model: LoadedModel, still: Image.Image) -> None:
        self._model, self._still = model, still
        self._changed = threading.Condition()
        self._waiting: list[tuple[Params, asyncio.Future[Taken], float]] = []
        threading.Thread(target=self._work, daemon=True).start()

    async def __call__(self, params: Params) -> Taken:
        """Serve one request."""
        future: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._waiting.append((params, future, time.perf_counter()))
            self._changed.notify()
        return await future

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
            time.sleep(0.01)  # those who ask at the same moment make one batch
            with self._changed:
                batch, self._waiting = self._waiting, []
            self._run(batch)

    def _run(self, batch: list[tuple[Params, asyncio.Future[Taken], float]]) -> None:
        torch.set_num_threads(self._model.settings.cores)
        vae = self._model.checkpoint.vae
        with torch.inference_mode():
            rows = [prepare_row(self._model.checkpoint, params, [self._still]) for params, _, _ in batch]
            first = None
            while running := [n for n, row in enumerate(rows) if not row.done]:
                for n, row in zip(running, advance(self._model.denoiser, [rows[n] for n in running]), strict=True):
                    rows[n] = row
                first = first or time.perf_counter()
            for row, (params, _, _) in zip(rows, batch, strict=True):
                encode_video(decode(vae, row.latents, params.decode_chunk_size), params.fps, "mp4")
        ended = time.perf_counter()
        for params, future, submitted in batch:
            taken = Taken(params.num_inference_steps, (first or ended) - submitted, ended - submitted)
            future.get_loop().call_soon_threadsafe(future.set_result, taken)


class Diffusers:
    """The pipeline, behind a queue of one."""

    def __init__(self, pipeline: Pipeline | PipelineAside) -> None:
        self._pipeline = pipeline
        self._queue = ThreadPoolExecutor(1)

    async def __call__(self, params: Params) -> Taken:
        """Serve one request."""
        began = time.perf_counter()
        _, first = await asyncio.get_running_loop().run_in_executor(self._queue, self._pipeline.video, params)
        return Taken(params.num_inference_steps, first - began, time.perf_counter() - began)


def row_of_table(name: str, callers: int, taken: list[Taken], seconds: float) -> dict[str, Any]:
    """The figures of one system at one load."""
    out: dict[str, Any] = {"callers": callers, "system": name, "videos_per_minute": 60 * len(taken) / seconds}
    for label, some in (("all", taken), ("short", [one for one in taken if one.steps == SHORT])):
        totals = sorted(one.total_s for one in some)
        out[f"{label}_mean_s"] = statistics.mean(totals)
        out[f"{label}_p99_s"] = totals[min(len(totals) - 1, math.ceil(0.99 * len(totals)) - 1)]
        out[f"{label}_first_step_s"] = statistics.mean(one.first_step_s for one in some)
    return out


def print_table(rows: list[dict[str, Any]]) -> None:
    """As Markdown."""
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
        print("| " + " | ".join(cells) + " |")


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every system at every load."""
    entry = find(options.model)
    picture = open_picture(Path(options.still).read_bytes())
    still = fit_picture(picture, entry.height, entry.width, "crop")
    settings = EngineSettings(device=options.device, backend=options.denoiser)
    engine = InProcessEngine([entry], settings)
    await engine.start()
    model = load_model(entry, settings)
    device = str(model.checkpoint.unet.device)
    pipeline = PipelineAside(entry.path, still) if device == "cpu" else Pipeline(entry.path, still, device)
    systems: dict[str, Serve] = {
        "step": StepBatching(engine, entry, to_png(still)),
        "request": RequestBatching(model, still),
        "diffusers": Diffusers(pipeline),
    }
    systems = {name: serve for name, serve in systems.items() if name in options.systems}
    for serve in systems.values():
        await serve(entry.resolve({"num_inference_steps": 1}, seed=0))
    rows = []
    for callers in options.callers:
        for name, serve in systems.items():
            taken, seconds = await load_of(serve, entry, callers, options.videos, options.think)
            rows.append(row_of_table(name, callers, taken, seconds))
            print(json.dumps(rows[-1]), flush=True)
    stats = engine.stats()
    assert stats is not None
    print(f"rows a denoiser call, step batching: {dict(sorted(stats.rows_per_call.items()))}")
    if options.check:
        params = entry.resolve({"num_inference_steps": SHORT}, seed=3)
        torch.set_num_threads(settings.cores)
        row = prepare_row(model.checkpoint, params, [still])
        while not row.done:
            (row,) = advance(model.denoiser, [row])
        difference = float((row.latents - pipeline.latents(params)).abs().max())
        print(f"final latents against diffusers', {SHORT} steps: largest difference {difference:.1e}")
    await engine.stop()
    return rows


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description="Step batching beside request batching and diffusers.")
    parser.add_argument("--model", default="mini-image-to-video")
    parser.add_argument("--still", default="docs/assets/still.jpg")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--denoiser", default="auto", help="of ours: auto, torch, openvino, ...")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--videos", type=int, default=2, help="that each caller asks for, one after another")
    parser.add_argument("--think", type=float, default=0.0, help="seconds, on average, before a caller asks")
    parser.add_argument("--systems", nargs="+", default=["step", "request", "diffusers"])
    parser.add_argument("--check", action="store_true", help="compare the latents with diffusers' at one caller")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = asyncio.run(run(options))
    print_table(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)

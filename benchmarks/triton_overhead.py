"""What Triton adds: the same jobs in process and through a real Triton server, in turn, in one run.

    python -m benchmarks.triton_overhead [--model mini-image-to-video] [--videos 3] [--steps 8] [--json FILE]

Both sides have the same checkpoint, settings, threads and seeds, and one job at a time; which goes first changes from
video to video, so that a machine that slows down slows both. The server is the one that `stillmotion triton` would
start; a wheel that was not fetched yet is fetched.

Prints for each side the median seconds of a job, from its submission to its mp4, and between two steps; then what
Triton adds to either: the median over the videos of the pair's difference, and of its ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.entry import run_main
from export.pipeline import install_checkpoint
from model.catalog import ModelEntry
from model.media.image import open_picture, to_png
from model.sources.source import find
from serving.engine.inprocess import InProcessEngine
from serving.engine.protocol import Completed, Engine, EngineRequest, Stepped
from serving.engine.settings import EngineSettings, usable_cores
from serving.triton.client import TritonEngine
from serving.triton.server import Ports, TritonServer, find_server

STILL = Path(__file__).parents[1] / "docs" / "assets" / "still.jpg"


@dataclass(frozen=True)
class Took:
    """One video: seconds in all, between steps (the median), and its frames."""

    job_s: float
    step_s: float
    frames_sha256: str


async def make(engine: Engine, entry: ModelEntry, picture: bytes, seed: int, steps: int) -> Took:
    """One video on an idle engine."""
    params = entry.resolve({"num_inference_steps": steps}, seed=seed)
    began, at = time.perf_counter(), []
    async for event in engine.submit(EngineRequest(f"job-{seed}", entry.name, params, (picture,), "mp4")):
        if isinstance(event, Stepped):
            at.append(time.perf_counter())
        if isinstance(event, Completed):
            gaps = [later - earlier for earlier, later in pairwise(at)]
            return Took(time.perf_counter() - began, statistics.median(gaps), event.frames_sha256)
    raise RuntimeError("the job did not complete")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def measure(url: str, entry: ModelEntry, settings: EngineSettings, videos: int, steps: int) -> list[list[Took]]:
    """[in process, through Triton] for each video, after one of each that does not count."""
    engines: list[Engine] = [InProcessEngine([entry], settings), TritonEngine([url])]
    picture = to_png(open_picture(STILL.read_bytes()))
    for engine in engines:
        await engine.start()
        await make(engine, entry, picture, 1000, 2)
    pairs = []
    for seed in range(videos):
        order = (0, 1) if seed % 2 == 0 else (1, 0)
        took = {side: await make(engines[side], entry, picture, seed, steps) for side in order}
        pairs.append([took[0], took[1]])
        print(f"video {seed}: {took[0].job_s:.2f} s in process, {took[1].job_s:.2f} s through Triton", flush=True)
    for engine in engines:
        await engine.stop()
    return pairs


def report(pairs: list[list[Took]]) -> dict[str, float | bool]:
    """The figures that are printed."""
    figures: dict[str, float | bool] = {"videos": len(pairs)}
    for name in ("job_s", "step_s"):
        here, there = ([getattr(pair[side], name) for pair in pairs] for side in (0, 1))
        figures[f"{name}_in_process"] = statistics.median(here)
        figures[f"{name}_triton"] = statistics.median(there)
        figures[f"{name}_added"] = statistics.median(b - a for a, b in zip(here, there, strict=True))
        figures[f"{name}_ratio"] = statistics.median(b / a for a, b in zip(here, there, strict=True))
    figures["same_frames"] = all(one.frames_sha256 == other.frames_sha256 for one, other in pairs)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini-image-to-video")
    parser.add_argument("--videos", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    entry, threads = find(options.model), usable_cores()
    settings = EngineSettings(device="cpu", threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        install_checkpoint(entry, Path(folder), parameters={"device": "cpu", "threads": str(threads)})
        ports = Ports(free_port(), free_port(), 0)
        with (Path(folder) / "triton.log").open("wb") as log:
            server = TritonServer(find_server("auto", Path(folder), None, True), Path(folder), ports, log=log)
            try:
                server.start()
                server.wait_ready(900)
                pairs = asyncio.run(measure(ports.url, entry, settings, options.videos, options.steps))
            finally:
                server.kill()
    figures = report(pairs)
    for name, value in figures.items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)

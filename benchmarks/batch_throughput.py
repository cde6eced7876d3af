"""Videos a minute, offline: `stillmotion batch`, a plain loop over our engine, a plain loop over diffusers' pipeline.

    python -m benchmarks.batch_throughput [--model mini-image-to-video] [--videos 6] [--steps 4] [--workers 1 2]

The same still, seeds and settings; each video ends as an mp4. Loading a checkpoint is left out everywhere:
for the batch, time runs from its first row's fetch to its last row's record. The batch is run once for each number of
CPU workers, which share the same cores. Then `--rows` tiny rows of a tiny checkpoint tell what a row costs the driver,
and the plan of a thousand workers (benchmarks/batch_plan.py) is printed from that and from the first run's I/O times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.aside import PipelineAside
from benchmarks.batch_plan import Costs, plan_table
from benchmarks.entry import run_main
from model.catalog import ModelEntry
from model.media.image import fit_picture, open_picture
from model.params import Params
from model.presets import preset
from model.sources.source import find
from model.tasks import task
from model.testing import build_random
from serving.engine.loaded_model import load_model
from serving.engine.local import generate
from serving.engine.settings import EngineSettings
from serving.offline import Batch, run
from serving.offline.result_log import Result, parse
from serving.provenance.video_manifest import finish


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def batch_s(
    entry: ModelEntry, still: Path, requests: list[Params], workers: int, folder: Path
) -> tuple[float, list[Result]]:
    """Seconds from the first fetch to the last record, and the results."""
    manifest = folder / "manifest.jsonl"
    rows = [{"image": str(still), "seed": one.seed, "num_inference_steps": one.num_inference_steps} for one in requests]
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = folder / f"out{workers}"
    run(Batch(manifest=str(manifest), out=str(out), entries=(entry,), workers=workers), lambda *_: None)
    results = [parse(line) for line in (out / "results.jsonl").read_bytes().splitlines()]
    if any(one.status != "completed" for one in results):
        raise SystemExit(f"rows failed: {[one.error_message for one in results]}")
    return max(one.ended_at for one in results) - min(one.ended_at - seconds_of(one) for one in results), results


def seconds_of(result: Result) -> float:
    """From the row's fetch to its record."""
    phases = ("fetch", "queued", "encode", "denoise", "decode", "mux", "write")
    return sum(float(getattr(result, f"{phase}_s")) for phase in phases)


def loop_s(entry: ModelEntry, still: Path, requests: list[Params], folder: Path) -> float:
    """Seconds of a loop over our engine's own phases, one request after another."""
    model, data = load_model(entry, EngineSettings()), still.read_bytes()
    generate(model, entry.resolve({"num_inference_steps": 1}, seed=0), (data,))

    def work() -> None:
        for params in requests:
            completed = generate(model, params, (data,)).completed
            (folder / f"loop-{params.seed}.mp4").write_bytes(finish(completed, params, (data,), "mp4").video)

    return timed(work)


def diffusers_s(entry: ModelEntry, still: Path, requests: list[Params]) -> float:
    """Seconds of a loop over the pipeline, in a process of its own, as its users run it."""
    first = entry.resolve({"num_inference_steps": 1}, seed=0)
    picture = fit_picture(open_picture(still.read_bytes()), first.height, first.width, first.resize_mode)
    with PipelineAside(entry.path, picture) as pipeline:
        pipeline.video(first)
        return timed(lambda: [pipeline.video(params) for params in requests])


def driver_s(rows: int, still: Path, folder: Path) -> float:
    """Seconds of the driver's processor time for a row: this process's own while tiny rows come in."""
    sized = replace(preset("tiny"), height=32, width=32)
    tiny = build_random(folder / "tiny", sized, task("image-to-video"), seed=0, num_frames=4)
    manifest = folder / "tiny.jsonl"
    row = {"image": str(still), "num_inference_steps": 1, "max_guidance_scale": 1.0}
    manifest.write_text("".join(f"{json.dumps({**row, 'seed': seed})}\n" for seed in range(rows)))
    marks: list[tuple[int, float]] = []
    run(
        Batch(manifest=str(manifest), out=str(folder / "tiny-out"), entries=(tiny,)),
        lambda _, done, total: marks.append((done, time.process_time())) if total else None,
    )
    first, last = marks[rows // 4], marks[-1]
    return (last[1] - first[1]) / (last[0] - first[0])


def measured(results: list[Result], driver_s: float) -> Costs:
    """What the plan is made from: medians over the rows."""

    def median(*phases: str) -> float:
        return statistics.median(sum(float(getattr(one, f"{phase}_s")) for phase in phases) for one in results)

    return Costs(driver_s=driver_s, fetch_s=median("fetch"), mux_s=median("mux"), write_s=median("write"))


def main() -> None:
    """Run everything in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini-image-to-video")
    parser.add_argument("--still", type=Path, default=Path("docs/assets/still.jpg"))
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    entry, still = find(options.model), options.still.absolute()
    requests = [entry.resolve({"num_inference_steps": options.steps}, seed=seed) for seed in range(options.videos)]
    open_picture(still.read_bytes())
    print("| system | videos a minute |\n|---|---|", flush=True)

    def tell(name: str, seconds: float) -> None:
        print(f"| {name} | {60 * len(requests) / seconds:.2f} |", flush=True)

    results: list[Result] = []
    with TemporaryDirectory() as scratch:
        for workers in options.workers:
            seconds, completed = batch_s(entry, still, requests, workers, Path(scratch))
            results = results or completed
            tell(f"stillmotion batch, {workers} worker{'s' if workers > 1 else ''}", seconds)
        # Before our engine is loaded here, which sets this process's allocator up (model/platform.py).
        tell("loop over diffusers", diffusers_s(entry, still, requests))
        tell("loop over our engine", loop_s(entry, still, requests, Path(scratch)))
        costs = measured(results, driver_s(options.rows, still, Path(scratch)))
    print(f"\n{costs}\n\n{plan_table(costs)}")


if __name__ == "__main__":
    run_main(main)

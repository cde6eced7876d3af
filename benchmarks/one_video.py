"""One video on this machine: ours beside diffusers' pipeline, then each option that costs quality beside the exact one.

    python -m benchmarks.one_video [--model mini-image-to-video] [--denoiser auto] [--repeats 3] [--pictures 4]

Each side gets the same decoded still, checkpoint, seed and settings, float32 and every core, and goes as far as the
mp4. The sides take turns, so that a machine that slows down slows all; seconds are medians, and each ratio is the
median of the turns' ratios, of wall seconds and of processor seconds (of all cores), which other work on the machine
disturbs less. PSNR is over all pixels of all frames, the worst and the median of the pictures.

    exact       our engine's own phases, rows and denoiser, as `stillmotion generate` runs them, against diffusers' in
                a process of its own: as its users run it, and told to keep freed memory as our engine does
    costly      reuse of deep features, a guidance interval, and Align-Your-Steps 10 (its PSNR is against 25 Karras
                steps, beside what 10 Karras steps reach)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from PIL import Image

from benchmarks.aside import PipelineAside
from benchmarks.entry import run_main
from model.catalog import ModelEntry
from model.errors import DataError
from model.media.image import fit_picture, open_picture, to_png
from model.sources.source import find
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.local import Generated, generate
from serving.engine.settings import EngineSettings
from training.metrics.image import psnr

FULL: Final = 25
COSTLY: Final[dict[str, dict[str, Any]]] = {
    "reuse every 2nd": {"reuse_every": 2},
    "guided at 0.3 < sigma <= 5 only": {"guidance_interval": (0.3, 5.0)},
}
"""Options of the engine by name: what they change of its settings."""


def stills(folder: Path, entry: ModelEntry, count: int) -> list[Image.Image]:
    """The pictures of a folder in order of name, fitted to the clip. Raises DataError where there are none."""
    paths = sorted(path for path in folder.glob("*") if path.suffix in (".jpg", ".png"))[:count]
    if not paths:
        raise DataError(
            f"no pictures in {folder}: `stillmotion data starter --out data/starter` prepares some, or name a folder "
            "with --stills",
            param="stills",
        )
    return [fit_picture(open_picture(path.read_bytes()), entry.height, entry.width, "crop") for path in paths]


def ours(model: LoadedModel, still: bytes, **fields: Any) -> tuple[Generated, float, float]:
    """One video, its seconds, and those of the processor."""
    began, processor = time.perf_counter(), time.process_time()
    result = generate(model, model.entry.resolve(fields, seed=7), (still,))
    return result, time.perf_counter() - began, time.process_time() - processor


def beside_diffusers(model: LoadedModel, pictures: list[Image.Image], repeats: int) -> dict[str, Any]:
    """The exact engine and the pipeline, in turn; the pipeline with the heap as it comes, and with ours."""
    took: dict[str, list[float]] = {"ours": [], "diffusers": [], "diffusers, freed memory kept": []}
    processor: dict[str, list[float]] = {name: [] for name in took}
    decibels, apart = [], []
    params, folder = model.entry.resolve({}, seed=7), model.entry.path
    with (
        PipelineAside(folder, pictures[0]) as plain,
        PipelineAside(folder, pictures[0], kept_memory=True) as retaining,
    ):
        pipelines = {"diffusers": plain, "diffusers, freed memory kept": retaining}
        for still in pictures:
            for pipeline in pipelines.values():
                pipeline.still = still
                pipeline.video(params)  # warm
            ours(model, to_png(still))
            for _ in range(repeats):
                result, seconds, of_processor = ours(model, to_png(still))
                took["ours"].append(seconds)
                processor["ours"].append(of_processor)
                for name, pipeline in pipelines.items():
                    began = time.perf_counter()
                    frames, _ = pipeline.video(params)
                    took[name].append(time.perf_counter() - began)
                    processor[name].append(pipeline.processor_s)
            decibels.append(psnr(result.frames, frames))
            apart.append(float((result.latents - plain.latents(params)).abs().max()))
    return {
        "backend": model.settings.backend,
        "load": os.getloadavg()[0],
        "seconds": {name: statistics.median(seconds) for name, seconds in took.items()},
        "processor_seconds": {name: statistics.median(seconds) for name, seconds in processor.items()},
        "times_faster": {name: _times(took, name) for name in pipelines},
        "times_less_processor": {name: _times(processor, name) for name in pipelines},
        "worst_psnr_db": min(decibels),
        "latents_apart": max(apart),
    }


def _times(took: dict[str, list[float]], name: str) -> float:
    """The median of the turns' ratios to ours."""
    return statistics.median(theirs / mine for mine, theirs in zip(took["ours"], took[name], strict=True))


def costly(entry: ModelEntry, pictures: list[Image.Image], repeats: int) -> list[dict[str, Any]]:
    """Each option beside the exact engine, at the default steps."""
    exact = load_model(entry, EngineSettings())
    rows = []
    for name, changes in COSTLY.items():
        other = load_model(entry, replace(EngineSettings(), **changes))
        rows.append(_compared(name, (exact, {}), (other, {}), pictures, repeats))
    ten, steps = {"num_inference_steps": 10}, {"num_inference_steps": FULL}
    ays = {**ten, "schedule": "align-your-steps"}
    rows.append(_compared("10 Karras steps", (exact, steps), (exact, ten), pictures, repeats))
    rows.append(_compared("10 Align-Your-Steps", (exact, steps), (exact, ays), pictures, repeats))
    return rows


Side = tuple[LoadedModel, dict[str, Any]]


def _compared(name: str, before: Side, after: Side, pictures: list[Image.Image], repeats: int) -> dict[str, Any]:
    ratios, decibels, seconds = [], [], []
    for still in map(to_png, pictures):
        for _ in range(repeats):
            exact, slow, _ = ours(before[0], still, **before[1])
            result, fast, _ = ours(after[0], still, **after[1])
            ratios.append(slow / fast)
            seconds.append(fast)
        decibels.append(psnr(result.frames, exact.frames))
    return {
        "option": name,
        "against": f"{FULL} Karras steps" if before[1] else "default",
        "seconds": statistics.median(seconds),
        "times_faster": statistics.median(ratios),
        "worst_psnr_db": min(decibels),
        "median_psnr_db": statistics.median(decibels),
    }


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description="One video: ours, diffusers', and what quality buys.")
    parser.add_argument("--model", default="mini-image-to-video")
    parser.add_argument("--denoiser", default="auto", help="of the exact side: auto, torch, openvino, ...")
    parser.add_argument("--stills", type=Path, default=Path("data/starter/photos"), help="folder of pictures")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="of each side, for each picture")
    parser.add_argument("--parts", nargs="+", choices=["exact", "costly"], default=["exact", "costly"])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    entry = find(options.model)
    pictures = stills(options.stills, entry, options.pictures)
    figures: dict[str, Any] = {"model": f"{entry.name}@{entry.version}", "pictures": len(pictures)}
    if "exact" in options.parts:
        figures["exact"] = beside_diffusers(
            load_model(entry, EngineSettings(backend=options.denoiser)), pictures, options.repeats
        )
        print(json.dumps(figures["exact"]), flush=True)
    if "costly" in options.parts:
        figures["costly"] = costly(entry, pictures, max(1, options.repeats // 2))
        for row in figures["costly"]:
            print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)

"""Published Stable Video Diffusion weights on this machine, in one command: parity, memory, speed and a video.

    python -m benchmarks.real_weights DIR [--still PICTURE] [--device cuda] [--dtype float16] [--out FOLDER]

DIR is a folder of the image-to-video pipeline in diffusers' format; a single `.safetensors` file of Stability's is
adapted into one first (docs/published-weights.md). Ours and diffusers' pipeline get the same weights, picture, seed
and settings, one after the other, so that each has the memory to itself:

    parity   the final latents after two steps in float32, and the frames of the whole video in the dtype served
    memory   the most that the GPU held for a video (on a CPU, the most that the process held, both sides together)
    speed    the median of `--repeats` videos after a warm-up, to the mp4
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from benchmarks.entry import run_main
from benchmarks.pipeline import Pipeline
from model.catalog import ModelEntry, describe
from model.importers.sgm import adapt
from model.media.image import fit_picture, open_picture, to_png
from model.presets import preset
from serving.engine.loaded_model import load_model
from serving.engine.local import generate
from serving.engine.settings import EngineSettings
from training.metrics.image import psnr

PARITY_STEPS: Final = 2
SEED: Final = 7


def entry_of(weights: Path, size: str, out: Path) -> ModelEntry:
    """The checkpoint, adapted first where it is a single file."""
    if weights.is_dir():
        return describe(weights, weights.name)
    entry, set_aside = adapt(weights, out / weights.stem, preset(size))
    print(f"adapted {weights.name} into {entry.path}; {len(set_aside)} weights set aside")
    return entry


def measured(work: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, float]]:
    """What it gives, its median seconds after a warm-up, and its peak of memory in GiB."""
    on_gpu = torch.cuda.is_available()
    work()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result, {"seconds": statistics.median(seconds), "peak_gib": peak / 2**30}


def let_go() -> None:
    """Give the last side's memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parity(entry: ModelEntry, still: Image.Image, device: str) -> dict[str, float]:
    """Final latents after two steps in float32, ours against diffusers'."""
    params = entry.resolve({"num_inference_steps": PARITY_STEPS}, seed=SEED)
    ours = generate(entry, params, (to_png(still),), settings=EngineSettings(device=device)).latents
    let_go()
    theirs = Pipeline(entry.path, still, device).latents(params)
    let_go()
    return {
        "steps": PARITY_STEPS,
        "latents_apart": float((ours - theirs).abs().max()),
        "latents_largest": float(theirs.abs().max()),
    }


def videos(
    entry: ModelEntry, still: Image.Image, settings: EngineSettings, steps: int | None, repeats: int, out: Path
) -> dict[str, Any]:
    """A whole video from either side, timed; ours is kept."""
    params = entry.resolve({"num_inference_steps": steps}, seed=SEED)
    model = load_model(entry, settings)
    device, dtype = str(model.checkpoint.unet.device), getattr(torch, settings.dtype)
    result, mine = measured(lambda: generate(model, params, (to_png(still),)), repeats)
    (out / "video.mp4").write_bytes(result.completed.video)
    (out / "frames.png").write_bytes(result.completed.frames)
    del model
    let_go()
    pipeline = Pipeline(entry.path, still, device, dtype)
    frames, theirs = measured(lambda: pipeline.video(params)[0], repeats)
    assert isinstance(frames, np.ndarray)
    return {
        "frames": params.num_frames,
        "steps": params.num_inference_steps,
        "dtype": settings.dtype,
        "ours": mine,
        "diffusers": theirs,
        "times_faster": theirs["seconds"] / mine["seconds"],
        "frames_psnr_db": psnr(result.frames, frames),
    }


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description="Parity, memory, speed and a video of published weights.")
    parser.add_argument("weights", type=Path, help="a folder in diffusers' format, or one .safetensors file")
    parser.add_argument("--size", choices=["svd-xt", "svd"], default="svd-xt", help="of a single file")
    parser.add_argument("--still", type=Path, default=Path("docs/assets/still.jpg"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], help="[float16; float32 on a CPU]")
    parser.add_argument("--steps", type=int, help="of the video [the checkpoint's default]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/real-weights"), help="for the video and the figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    entry = entry_of(options.weights, options.size, options.out)
    picture = open_picture(options.still.read_bytes())
    still = fit_picture(picture, entry.height, entry.width, "crop")
    dtype = options.dtype or ("float32" if options.device == "cpu" else "float16")
    settings = EngineSettings(device=options.device, dtype=dtype)
    figures: dict[str, Any] = {"model": f"{entry.name}@{entry.version}", "device": options.device}
    figures["parity"] = parity(entry, still, options.device)
    print(json.dumps(figures["parity"]), flush=True)
    figures["video"] = videos(entry, still, settings, options.steps, options.repeats, options.out)
    print(json.dumps(figures["video"]), flush=True)
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)

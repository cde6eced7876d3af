"""One warm video, and four callers at once, on this machine: seconds, denoiser calls, and the difference from solo.

    python benchmarks/laptop.py [MODEL] [STILL]

Prints the median of three warm videos at the default steps, then the calls four concurrent requests of different step
counts share, and how far each latent-made frame is from its solo run (Identity, default mode).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from model.catalog import ModelEntry, find
from model.image import open_picture, to_png
from model.params import Params
from model.video import decode_video
from serving.engine.inprocess import InProcessEngine
from serving.engine.protocol import Completed, EngineRequest
from serving.engine.settings import EngineSettings

CALLERS = ((4, 11), (6, 12), (8, 13), (10, 14))


async def finished(engine: InProcessEngine, name: str, entry: ModelEntry, params: Params, png: bytes) -> Completed:
    """The result of one request; anything else than success ends the benchmark."""
    async for event in engine.submit(EngineRequest(name, entry.name, params, (png,), "mp4")):
        last = event
    if not isinstance(last, Completed):
        raise SystemExit(f"{name} ended as {last}")
    return last


async def measure(entry: ModelEntry, png: bytes) -> None:
    """Run both parts and print them."""
    engine = InProcessEngine([entry], EngineSettings())
    await engine.start()
    default = entry.resolve({}, seed=7)
    seconds: list[float] = []
    for index in range(3):
        began = time.perf_counter()
        await finished(engine, f"warm-{index}", entry, default, png)
        seconds.append(time.perf_counter() - began)
    steps = default.num_inference_steps
    print(f"warm video, {default.num_frames} frames, {steps} steps: {statistics.median(seconds):.1f} s (of {seconds})")

    asked = [entry.resolve({"num_inference_steps": steps}, seed=seed) for steps, seed in CALLERS]
    solo = [await finished(engine, f"solo-{k}", entry, params, png) for k, params in enumerate(asked)]
    before = engine.stats()
    shared = await asyncio.gather(
        *(finished(engine, f"shared-{k}", entry, params, png) for k, params in enumerate(asked))
    )
    after = engine.stats()
    assert before is not None and after is not None
    calls = after.denoiser_calls - before.denoiser_calls
    print(f"four at once: {calls} denoiser calls for {sum(steps for steps, _ in CALLERS)} steps")
    for (count, _), one, other in zip(CALLERS, solo, shared, strict=True):
        frames = [decode_video(result.video)[0].astype(np.int16) for result in (one, other)]
        same = one.frames_sha256 == other.frames_sha256
        print(f"  {count:2d} steps: frames equal {same}, largest difference {np.abs(frames[0] - frames[1]).max()}")
    await engine.stop()


def main() -> None:
    """Read the arguments."""
    entry = find(sys.argv[1] if len(sys.argv) > 1 else "mini-image-to-video")
    still = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/assets/still.jpg")
    asyncio.run(measure(entry, to_png(open_picture(still.read_bytes()))))


if __name__ == "__main__":
    main()

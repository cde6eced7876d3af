"""One warm video, and four callers at once, on this machine: seconds, denoiser calls, and the difference from solo.

    python -m benchmarks.laptop [MODEL] [STILL]

Prints the median of three warm videos at the default steps, then the calls four concurrent requests of different step
counts share, and how far each one's latents and video are from its solo run (Identity, default mode).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from benchmarks.entry import run_main
from model.catalog import ModelEntry
from model.media.image import open_picture, to_png
from model.media.video import decode_video
from model.sources.source import find
from serving.engine.inprocess import InProcessEngine
from serving.engine.protocol import Checkpointed, Completed, EngineRequest
from serving.engine.settings import EngineSettings

CALLERS = ((4, 11), (6, 12), (8, 13), (10, 14))


async def finished(engine: InProcessEngine, request: EngineRequest) -> tuple[Completed, Tensor]:
    """The result of one request and its final latents (of its last stored state, if any)."""
    latents = torch.empty(0)
    async for event in engine.submit(request):
        last = event
        if isinstance(event, Checkpointed):
            latents = load(event.state)["x"]
    if not isinstance(last, Completed):
        raise SystemExit(f"{request.job_id} ended as {last}")
    return last, latents


async def warm(entry: ModelEntry, png: bytes) -> None:
    """Seconds of a video at the default settings, nothing else running."""
    engine = InProcessEngine([entry], EngineSettings())
    await engine.start()
    default = entry.resolve({}, seed=7)
    seconds: list[float] = []
    for index in range(3):
        began = time.perf_counter()
        await finished(engine, EngineRequest(f"warm-{index}", entry.name, default, (png,), "mp4"))
        seconds.append(round(time.perf_counter() - began, 2))
    await engine.stop()
    steps = default.num_inference_steps
    print(f"warm video, {default.num_frames} frames, {steps} steps: {statistics.median(seconds):.1f} s (of {seconds})")


async def shared(entry: ModelEntry, png: bytes) -> None:
    """Four requests of different step counts, together and alone."""
    engine = InProcessEngine([entry], EngineSettings(max_batch=8, checkpoint_every_s=0.0))
    await engine.start()

    def request(name: str, steps: int, seed: int) -> EngineRequest:
        return EngineRequest(name, entry.name, entry.resolve({"num_inference_steps": steps}, seed=seed), (png,), "mp4")

    alone = [await finished(engine, request(f"alone-{steps}", steps, seed)) for steps, seed in CALLERS]
    before = engine.stats()
    together = await asyncio.gather(
        *(finished(engine, request(f"shared-{steps}", steps, seed)) for steps, seed in CALLERS)
    )
    after = engine.stats()
    assert before is not None and after is not None
    calls = after.denoiser_calls - before.denoiser_calls
    print(f"four at once: {calls} denoiser calls for {sum(steps for steps, _ in CALLERS)} steps")
    for (steps, _), (one, expected), (other, actual) in zip(CALLERS, alone, together, strict=True):
        frames = [decode_video(result.video)[0].astype(np.int16) for result in (one, other)]
        print(
            f"  {steps:2d} steps: latents differ by at most {float((expected - actual).abs().max()):.1e}; "
            f"frames equal: {one.frames_sha256 == other.frames_sha256}; "
            f"decoded mp4s by {np.abs(frames[0] - frames[1]).max()} levels"
        )
    await engine.stop()


def main() -> None:
    """Read the arguments."""
    entry = find(sys.argv[1] if len(sys.argv) > 1 else "mini-image-to-video")
    still = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/assets/still.jpg")
    png = to_png(open_picture(still.read_bytes()))
    asyncio.run(warm(entry, png))
    asyncio.run(shared(entry, png))


if __name__ == "__main__":
    run_main(main)

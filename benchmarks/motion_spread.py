"""How the starter dataset's clips spread over the motion buckets: `python -m benchmarks.motion_spread data/starter`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.entry import run_main
from training.data.frames import read_shot
from training.data.motion_bucket import MotionMap, measure_flow
from training.data.starter import load_items

FRAMES, CLIPS_A_SHOT, STRIDES = 14, 2, (1, 2, 3, 4)
HEIGHT, WIDTH = 128, 224
SHARES = (5, 10, 25, 50, 75, 90, 95)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="a prepared dataset, such as data/starter")
    folder: Path = parser.parse_args().folder
    rng = np.random.default_rng(0)
    flows: dict[float, list[float]] = {}
    for item in load_items(folder):
        if item.kind != "shot" or item.split == "credits":
            continue
        frames = read_shot(folder / item.file, HEIGHT, WIDTH)
        for stride in STRIDES:
            span = (FRAMES - 1) * stride + 1
            if len(frames) < span:
                continue
            for start in rng.integers(0, len(frames) - span + 1, CLIPS_A_SHOT):
                clip = frames[start : start + span : stride]
                flows.setdefault(item.fps / stride, []).append(measure_flow(clip, item.fps / stride))
    pooled = [flow for rate in flows.values() for flow in rate]
    print(f"{'fps':>5} {'clips':>6}  bucket at the 5th, 10th, 25th, 50th, 75th, 90th, 95th percentile of clips")
    for name, values in [*((f"{rate:g}", values) for rate, values in flows.items()), ("all", pooled)]:
        buckets = [MotionMap().bucket(flow) for flow in values]
        print(f"{name:>5} {len(values):>6} ", *(f"{share:4.0f}" for share in np.percentile(buckets, SHARES)))
    buckets = np.array([MotionMap().bucket(flow) for flow in pooled])
    print(f"at bucket 1: {(buckets == 1).mean():.1%} of clips; at 255: {(buckets == 255).mean():.1%}")


if __name__ == "__main__":
    run_main(main)

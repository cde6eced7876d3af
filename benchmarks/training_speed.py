"""How fast the image-to-video denoiser trains: processor seconds a clip, with diffusers' blocks and faster ones.

    python -m benchmarks.training_speed [--rounds 5] [--clips 4] [--threads 1] [--json]

A round is one forward and backward pass of each variant, in turn, so that other programs on the machine slow all alike;
the figure is the median over rounds. Processor time is of all threads. `ratio` is how many times as fast as the first
variant of its size; the gradients are the same to rounding (tests/unit/training/test_fast_blocks.py), so a run's loss
curve is, too. Arithmetic is counted by torch (FlopCounterMode), forward and backward. bf16 is timed where asked for
(--bf16): it gains on processors that have it in hardware (avx512_bf16, AMX), and costs time on others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.checkpoint import load
from model.optimized.rewrites import rewrite_exactly
from model.sources.source import find
from training.fast_blocks import speed_up

SIZES = {"64 x 112 windows": (8, 14), "whole frames": (16, 28)}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compute a clip's gradients.

    Args:
        clips: in one call of the network.
    """

    name: str
    network: nn.Module
    clips: int
    bf16: bool = False


def network(fast: bool) -> nn.Module:
    """The shipped denoiser, as it trains."""
    unet = cast(nn.Module, load(find("mini-image-to-video")).unet).float().train().requires_grad_(True)
    rewrite_exactly(unet, context_tokens=1)
    if fast:
        speed_up(unet)
    return unet


def passes(variant: Variant, height: int, width: int, frames: int = 14) -> Callable[[], None]:
    """One forward and backward pass on random latents."""
    draw = torch.Generator().manual_seed(0)
    rows = variant.clips
    latents = torch.randn(rows, frames, 32, height, width, generator=draw)
    context, vector = torch.randn(rows, 1, 128, generator=draw), torch.rand(rows, 3, generator=draw)
    times = torch.rand(rows, generator=draw)
    inputs = {"encoder_hidden_states": context, "added_time_ids": vector, "return_dict": False}

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=variant.bf16):
            out: Tensor = variant.network(latents, times, **inputs)[0]
        out.float().square().mean().backward()
        variant.network.zero_grad(set_to_none=True)

    return run


def measure(variants: list[Variant], size: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    """Each variant's median processor seconds a clip, its arithmetic, and its ratio to the first."""
    runs = [passes(variant, *size) for variant in variants]
    operations = []
    for variant, run in zip(variants, runs, strict=True):
        with FlopCounterMode(display=False) as counter:
            run()  # the first pass also fills the allocator's and oneDNN's caches
        operations.append(counter.get_total_flops() / variant.clips)
    seconds: list[list[float]] = [[] for _ in variants]
    for _ in range(rounds):
        for spent, variant, run in zip(seconds, variants, runs, strict=True):
            began = time.process_time()
            run()
            spent.append((time.process_time() - began) / variant.clips)
    medians = [statistics.median(spent) for spent in seconds]
    return [
        {
            "variant": variant.name,
            "seconds_a_clip": round(median, 3),
            "gflop_a_second": round(flops / median / 1e9, 1),
            "ratio": round(medians[0] / median, 2),
        }
        for variant, median, flops in zip(variants, medians, operations, strict=True)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=4, help="in one call, of the faster variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plain, fast = network(fast=False), network(fast=True)
    variants = [
        Variant("before: diffusers' blocks, one clip a call", plain, 1),
        Variant("fast blocks, one clip a call", fast, 1),
        Variant(f"fast blocks, {options.clips} clips a call", fast, options.clips),
    ]
    if options.bf16:
        variants.append(Variant(f"the same, bf16 ({options.clips} clips a call)", fast, options.clips, bf16=True))
    found = {name: measure(variants, size, options.rounds) for name, size in SIZES.items()}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, rows in found.items():
        print(name)
        for row in rows:
            timing = f"{row['seconds_a_clip']:7.3f} s a clip {row['gflop_a_second']:6.1f} GFLOP/s"
            print(f"  {row['variant']:44} {timing} {row['ratio']:5.2f} times as fast")


if __name__ == "__main__":
    main()

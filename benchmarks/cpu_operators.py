"""Where torch's time goes on a CPU: one guided denoiser call and one decoded chunk, by operator.

    python -m benchmarks.cpu_operators [MODEL] [--threads 1] [--top 12] [--plain]

One thread, so that processor time is the operator's own. `--plain` runs diffusers' networks as they are loaded, not the
fused blocks. Columns: calls, milliseconds and share of an operator without those it calls. Below each table:
allocations and bytes allocated in the call, and bytes that were only copied.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.backends import inputs
from benchmarks.entry import run_main
from model.checkpoint import load
from model.denoiser import call_unet
from model.optimized.fused_blocks import fuse
from model.platform import retain_freed_memory
from model.shapes import VAE_STRIDE, even_chunks
from model.sources.source import find

COPIES = ("aten::copy_", "aten::clone", "aten::cat", "aten::contiguous", "aten::_to_copy")


def table(name: str, work: Callable[[], object], top: int) -> None:
    """Profile `work` after two calls that warm it, and print its operators."""
    for _ in range(2):
        work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events: list[Any] = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"\n{name}: {total / 1e3:.0f} ms\n\n| operator | calls | ms | share |\n| --- | ---: | ---: | ---: |")
    for event in events[:top]:
        share = event.self_cpu_time_total / total
        print(f"| {event.key} | {event.count} | {event.self_cpu_time_total / 1e3:.1f} | {share:.1%} |")
    made = [event for event in events if event.self_cpu_memory_usage > 0]
    copied = sum(event.count for event in events if event.key in COPIES)
    allocated = sum(event.self_cpu_memory_usage for event in made) / 2**20
    print(f"\nallocated {allocated:.0f} MiB by {sum(event.count for event in made)} operators; {copied} copies")


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description="Where torch's time goes on a CPU, by operator.")
    parser.add_argument("model", nargs="?", default="mini-image-to-video", metavar="MODEL")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--plain", action="store_true", help="diffusers' networks as they are loaded")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    retain_freed_memory()
    entry = find(options.model)
    checkpoint, denoiser_inputs = load(entry), inputs(entry)
    if not options.plain:
        fuse(checkpoint.unet)
        fuse(checkpoint.vae)
    chunk = even_chunks(entry.num_frames[0], int(entry.defaults.get("decode_chunk_size", 8)))[0]
    latents = torch.randn(chunk, checkpoint.latent_channels, entry.height // VAE_STRIDE, entry.width // VAE_STRIDE)
    slot = denoiser_inputs.split(1)[0]
    table("one slot of a denoiser call", lambda: call_unet(checkpoint.unet, slot), options.top)
    with torch.inference_mode():
        table(f"a chunk of {chunk} frames", lambda: checkpoint.vae.decode(latents, num_frames=chunk), options.top)


if __name__ == "__main__":
    run_main(main)

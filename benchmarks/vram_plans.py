"""The plans of `--vram-budget` for cards of common sizes, computed on the meta device: the table of docs/speed.md.

    python -m benchmarks.vram_plans [svd] [svd-xt]

No weights and no GPU: networks of the published sizes in float16, the autoencoder's encoder in float32 as published.
"""

from __future__ import annotations

import sys

import torch

from cli.table import table
from model.errors import InvalidRequest
from model.memory.plan import GIB, needs_of, plan
from model.presets import preset
from model.shapes import VideoShape
from model.tasks import task
from model.testing import on_meta

CARDS = (8, 12, 16, 24)
CHUNK = 8


def rows(name: str) -> list[tuple[object, ...]]:
    """One line a card."""
    size = preset(name)
    checkpoint = on_meta(size, task("image-to-video"), torch.float16)
    shape = VideoShape(size.num_frames, size.height, size.width)
    needs = needs_of(checkpoint, shape.latent(size.vae.latent_channels), can_group=True)
    lines: list[tuple[object, ...]] = []
    clip = f"{size.num_frames}x{size.height}x{size.width}"
    for card in CARDS:
        try:
            way = plan(needs, card * GIB, size.num_frames, requested_chunk=CHUNK, overlap=True)
        except InvalidRequest as error:
            lines.append((name, clip, card, error.message.partition(";")[0], "", "", "", ""))
            continue
        offload = "encoders, autoencoder" if way.offload else "none"
        offload += ", denoiser's blocks" if way.group_offload else ""
        decode = "strips" if way.tiled_decode else "whole"
        lines.append(
            (name, clip, card, way.max_batch_size, offload, decode, way.decode_chunk, f"{way.peak_bytes / GIB:.1f}")
        )
    return lines


def main() -> None:
    """Print the table."""
    names = sys.argv[1:] or ["svd", "svd-xt"]
    columns = ("model", "clip", "GiB", "slots", "offloaded", "decoding", "frames a chunk", "peak GiB")
    print(table(columns, [row for name in names for row in rows(name)]))


if __name__ == "__main__":
    main()

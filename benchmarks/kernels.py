"""Our kernels against float64, and whether those in Triton compile for a GPU that is not here.

    python -m benchmarks.kernels                  the table of worst differences: on CUDA, else through the interpreter
    python -m benchmarks.kernels --compile 90     compile every kernel for compute capability 9.0 (no GPU needed)
    python -m benchmarks.kernels --write          put the table into benchmarks/RESULTS.md

Inputs are rounded to the dtype first, so a difference is what the kernel adds: its own rounding of sums and results.
It is shown as a share of the largest magnitude of the reference. float16 resolves 4.9e-4 of a number, bfloat16 3.9e-3.

Legend: N samples, L rows, C channels; B clips, T frames.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.entry import run_main
from benchmarks.results import write_section

BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"
DTYPES = (torch.float16, torch.bfloat16)
BOUNDS = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 4e-6}
"""Largest difference over the largest magnitude: one step of the dtype, which is two roundings to nearest."""


@dataclass(frozen=True)
class Case:
    """A kernel at a shape.

    Args:
        corner: what is special about the shape.
        run: gives the kernel's result and the float64 reference.
        slow: whether the interpreter takes seconds for it.
    """

    kernel: str
    shape: tuple[int, ...]
    corner: str
    run: Callable[[tuple[int, ...], torch.dtype, torch.device], Iterator[tuple[Tensor, Tensor]]]
    slow: bool = False

    @property
    def name(self) -> str:
        """For a test's id."""
        return f"{self.kernel} {'x'.join(map(str, self.shape))}"


def _random(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(scale).to(dtype).to(device)


def _norm(layer: Any, dtype: torch.dtype, device: torch.device) -> Any:
    generator = torch.Generator().manual_seed(9)
    for weight in layer.parameters():
        weight.data.normal_(generator=generator)
    return layer.to(device, dtype).requires_grad_(False)


def _group_norm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """[N, L, C, G]: far from zero, as activations are; with and without SiLU and an embedding for each third row."""
    from model.optimized.kernels import library

    samples, rows, channels, groups = shape
    x = _random(samples, rows, channels, dtype=dtype, device=device, scale=3.0) + 5
    span = rows // 3 if rows % 3 == 0 else rows
    extra = _random(samples * rows // span, channels, dtype=dtype, device=device, seed=1)
    norm = _norm(nn.GroupNorm(groups, channels, eps=1e-6), dtype, device)
    for silu, added in ((True, extra), (False, None)):
        got = library.group_norm(x, norm.weight, norm.bias, groups, norm.eps, silu, added, span)
        sums = x.double() if added is None else x.double() + added.double().repeat_interleave(span, 0).view(x.shape)
        grouped = sums.unflatten(-1, (groups, -1))
        variance, mean = torch.var_mean(grouped, (1, 3), correction=0, keepdim=True)
        plain = ((grouped - mean) / (variance + norm.eps).sqrt()).flatten(2)
        plain = plain * norm.weight.double() + norm.bias.double()
        yield got, plain * plain.sigmoid() if silu else plain


def _layer_norm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """[L, C, E, span]: the stored sum and its LayerNorm, the extra rows stored, not stored, and absent."""
    from model.optimized.kernels import library

    rows, channels, extras, span = shape
    x, y = (_random(rows, channels, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    extra = _random(extras, channels, dtype=dtype, device=device, seed=2)
    norm = _norm(nn.LayerNorm(channels), dtype, device)
    index = torch.arange(rows, device=device) // span % extras
    for added, stored in ((extra, True), (extra, False), (None, True)):
        total, got = library.add_layer_norm(x, y, norm.weight, norm.bias, norm.eps, added, span, stored)
        plain = x.double() + y.double()
        full = plain if added is None else plain + added.double()[index]
        yield total, full if stored else plain
        mean, variance = full.mean(-1, keepdim=True), full.var(-1, correction=0, keepdim=True)
        yield got, (full - mean) / (variance + norm.eps).sqrt() * norm.weight.double() + norm.bias.double()


def _geglu(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """[L, 2 C]."""
    from model.optimized.kernels import library

    x = _random(*shape, dtype=dtype, device=device, scale=2.0)
    wide, gate = x.double().chunk(2, -1)
    yield library.geglu(x), wide * gate * (1 + torch.erf(gate / 2**0.5)) / 2


def _blend(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """[numbers]."""
    from model.optimized.kernels import library

    start, x, y = (_random(*shape, dtype=dtype, device=device, seed=seed) for seed in range(3))
    share = torch.tensor(0.3, dtype=dtype, device=device)
    ratio = share.double()
    yield library.add_lerp(start, x, y, share), (1 - ratio) * start.double() + ratio * (x.double() + y.double())


def _attention(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """[B, T, N, C, heads]."""
    from model.optimized.kernels import library

    clips, frames, pixels, channels, heads = shape
    projected = _random(clips, frames, pixels, 3 * channels, dtype=dtype, device=device, scale=1.5)
    query, key, value = (
        part.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4) for part in projected.double().chunk(3, -1)
    )
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    plain = (scores.softmax(-1) @ value).permute(0, 3, 1, 2, 4).flatten(3)
    yield library.temporal_attention(projected, heads), plain


def _products(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """[N, L, C]: the autoencoder's attention, whose scores are rounded to the dtype, a picture at a time."""
    from model.optimized.kernel_blocks import attend_by_products

    query, key, value = (_random(*shape, dtype=dtype, device=device, seed=seed) for seed in range(3))
    scores = query.double() @ key.double().transpose(1, 2) / shape[-1] ** 0.5
    pictures = zip(query.split(1), key.split(1), value.split(1), strict=True)
    yield torch.cat([attend_by_products(*picture) for picture in pictures]), scores.softmax(-1) @ value.double()


CASES = (
    Case("group-norm", (2, 9, 40, 4), "10 channels a group, as 320 / 32", _group_norm),
    Case("group-norm", (1, 1, 4, 2), "one row", _group_norm),
    Case("group-norm", (1, 513, 12, 2), "one row in the second chunk", _group_norm, slow=True),
    Case("group-norm", (1, 25 * 3, 320, 32), "25 frames of one row", _group_norm, slow=True),
    Case("group-norm", (3, 7, 96, 3), "two blocks of channels, the last half full", _group_norm, slow=True),
    Case("layer-norm", (2 * 3 * 5, 40, 3, 5), "3 frames of 5 pixels", _layer_norm),
    Case("layer-norm", (25 * 3, 320, 25, 3), "25 frames, one odd row of blocks", _layer_norm, slow=True),
    Case("layer-norm", (1, 1280, 1, 1), "one row as wide as the network", _layer_norm),
    Case("geglu", (7, 2 * 33), "odd rows, odd width", _geglu),
    Case("geglu", (3, 2 * 1280), "as wide as level one", _geglu, slow=True),
    Case("blend", (5 * 5 * 41,), "one more number than a program", _blend),
    Case("temporal-attention", (2, 25, 5, 64, 2), "25 frames, one pixel in the last program", _attention),
    Case("temporal-attention", (1, 1, 3, 64, 1), "one frame, one head of 64", _attention),
    Case("temporal-attention", (1, 14, 1, 40, 2), "14 frames, heads of 20", _attention, slow=True),
    Case("vae-attention", (2, 35, 512), "two pictures of 5 x 7 cells, a head of 512", _products),
    Case("vae-attention", (1, 1, 512), "one cell", _products),
)


def worst(case: Case, dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference of the case's results from float64, over the largest magnitude."""
    apart = 0.0
    for got, expected in case.run(case.shape, dtype, device):
        assert got.dtype == dtype and got.shape == expected.shape
        apart = max(apart, float((got.double() - expected).abs().max() / expected.abs().max()))
    return apart


def table(device: torch.device) -> str:
    """A line a case."""
    lines = ["| kernel | shape | corner | float16 | bfloat16 |", "|---|---|---|---|---|"]
    for case in CASES:
        apart = " | ".join(f"{worst(case, dtype, device):.1e}" for dtype in DTYPES)
        lines.append(f"| {case.kernel} | {' x '.join(map(str, case.shape))} | {case.corner} | {apart} |")
    return "\n".join(lines)


TYPES = {"moments": "*fp32", "scale": "*fp32", "shift": "*fp32", "eps": "fp32", "factor": "fp32"}
POINTERS = frozenset({"x", "y", "extra", "out", "weight", "bias", "added", "start", "share", "projected"})


def compile_all(capability: int) -> list[str]:
    """Compile every kernel to machine code of an NVIDIA GPU; a line for each, with the shared memory it takes."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from model.optimized.kernels import triton_attention, triton_norm, triton_pointwise

    rows = {"ROWS": triton_norm.ROWS, "CHANNELS": triton_norm.CHANNELS}
    kernels = [
        (triton_norm._chunk_moments, rows | {"HAS_EXTRA": True, "TILES": triton_norm.TILES}),
        (triton_norm._unite_moments, {"LENGTH": 512, "CHUNKS": 64, "IN_GROUP": 16}),
        (triton_norm._scale_rows, rows | {"HAS_EXTRA": True, "SILU": True}),
        (triton_norm._add_layer_norm, {"HAS_EXTRA": True, "STORE_EXTRA": False, "ROWS": 8, "CHANNELS": 512}),
        (triton_norm._add_layer_norm, {"HAS_EXTRA": True, "STORE_EXTRA": True, "ROWS": 2, "CHANNELS": 2048}),
        (triton_pointwise._geglu, {"ROWS": 4, "CHANNELS": 256}),
        (triton_pointwise._add_lerp, {"NUMBERS": 1024}),
        (triton_attention._temporal_attention, {"PIXELS": 4, "FRAMES": 32, "WIDTH": 64, "INTERPRETED": False}),
    ]
    lines = []
    for kernel, constants in kernels:
        for dtype in ("fp16", "bf16"):
            signature = {
                name: "constexpr" if name in constants else f"*{dtype}" if name in POINTERS else TYPES.get(name, "i32")
                for name in kernel.arg_names
            }
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            compiled = compile_kernel(source, target=GPUTarget("cuda", capability, 32))
            spills = "spills" if ".local" in compiled.asm["ptx"] else "no spill"
            lines.append(
                f"{kernel.__name__} {dtype}: {len(compiled.asm['cubin'])} bytes, "
                f"{compiled.metadata.shared} of shared memory, {spills}"
            )
    return lines


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", type=int, metavar="CAPABILITY", help="80, 89, 90: compile, and compare nothing")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.compile:
        if os.environ.get("TRITON_INTERPRET") == "1":
            environment = os.environ | {"TRITON_INTERPRET": "0"}
            raise SystemExit(
                subprocess.call([sys.executable, "-m", "benchmarks.kernels", *sys.argv[1:]], env=environment)
            )
        print("\n".join(compile_all(options.compile)))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported
    text = table(device)
    print(text)
    if options.write:
        where = torch.cuda.get_device_name() if device.type == "cuda" else "a CPU, through Triton's interpreter"
        write_section(
            BEGIN,
            END,
            "## Kernels against float64\n\nWorst difference over the largest magnitude, with inputs already "
            f"rounded to the dtype; on {where} (`python -m benchmarks.kernels --write`).\n\n{text}",
        )


if __name__ == "__main__":
    run_main(main)

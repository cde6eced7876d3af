"""What is measured, a function each: it takes the Bench and what was found before, and gives figures for the JSON."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.svd_xt.bench import TASK, Bench, relieve
from model.backends.compiled import compile_blocks
from model.backends.registry import make_denoiser, resolve_options
from model.checkpoint import Checkpoint
from model.denoiser import BackendOptions, CpuThreads, Denoiser
from model.media.video import encode_video
from model.optimized.attention import KERNELS, usable
from model.optimized.fused_blocks import fuse
from model.optimized.kernels.choice import block_ops
from model.optimized.rewrites import relative_difference
from model.sampling.sampler import draw_noise, prepare_row, sample
from model.unet import build_unet
from model.vae import decode, decode_clip, upcast_encoder
from serving.engine.oom import max_batch_size

Found = dict[str, Any]
GUIDED = 2


def ceiling(bench: Bench, _: Found) -> Found:
    """TFLOP/s of a large matrix product in the run's dtype: what nothing here can exceed."""
    side = 8192 if bench.device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=bench.device, dtype=bench.dtype) for _ in range(2))
    taken = bench.timed(lambda: a @ b, repeats=20, warm_ups=5)
    return taken.as_dict() | {"tflops": 2 * side**3 / taken.median / 1e12}


def flops(bench: Bench, _: Found) -> Found:
    """TFLOP of one evaluation of the UNMODIFIED network (one place), counted on tensors without numbers."""
    unet = build_unet(bench.preset, TASK, device="meta").to("meta")
    inputs = bench.inputs(1).to(torch.device("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        sample = torch.cat([inputs.latents, inputs.concat], 2)
        unet(sample, inputs.timestep, inputs.context, added_time_ids=inputs.vector)
    return {"tflop": counter.get_total_flops() / 1e12}


def diffusers_eager(bench: Bench, _: Found) -> Found:
    """The pipeline as its users run it: half precision, decode_chunk_size 8."""
    return _diffusers(bench, bench.plain)


def diffusers_compiled(bench: Bench, _: Found) -> Found:
    """The same with `pipe.unet = torch.compile(pipe.unet, fullgraph=True)`."""
    return _diffusers(bench, replace(bench.plain, unet=compiled_by_torch(bench)))


def compiled_by_torch(bench: Bench) -> Any:
    """diffusers' UNet as its users compile it; as it is at a rehearsal."""
    unet = bench.plain.unet
    return unet if bench.rehearsal else torch.compile(unet, fullgraph=True)


def _diffusers(bench: Bench, checkpoint: Checkpoint) -> Found:
    latents, timestep, context, concat, vector = bench.inputs(GUIDED).as_tuple()
    sample_ = torch.cat([latents, concat], 2).to(bench.dtype)
    cast_context, unet = context.to(bench.dtype), checkpoint.unet

    def step() -> None:
        with torch.no_grad():
            unet(sample_, timestep[0], cast_context, added_time_ids=vector.to(bench.dtype), return_dict=False)

    ready = time.perf_counter()
    step()
    figures: Found = {"first_call_s": time.perf_counter() - ready, "step": bench.timed(step).as_dict()}
    plain = decode_clip

    def decoded() -> None:
        with torch.no_grad():
            plain(checkpoint.vae, latents[0].to(bench.dtype), 8)

    figures["decode"] = bench.timed(decoded, repeats=3, warm_ups=1).as_dict()
    pipeline = bench.pipeline(checkpoint)

    def whole(**other: Any) -> None:
        pipeline(bench.still, generator=torch.Generator().manual_seed(7), **pipeline_settings(bench, **other))

    bench.warm_up(lambda: whole(num_inference_steps=2))
    figures["end_to_end"] = bench.timed(whole, repeats=2, warm_ups=0).as_dict()
    return figures


def pipeline_settings(bench: Bench, **other: Any) -> dict[str, Any]:
    """The pipeline's arguments for the generation that all systems make."""
    size = bench.preset
    settings: dict[str, Any] = {
        "height": size.height,
        "width": size.width,
        "num_frames": size.num_frames,
        "num_inference_steps": bench.steps,
        "min_guidance_scale": 1.0,
        "max_guidance_scale": 3.0,
        "decode_chunk_size": 8,
    }
    return settings | other


def ours(bench: Bench, _: Found) -> Found:
    """Lean blocks in eager torch."""
    return _ours(bench, "torch")


def ours_compiled(bench: Bench, _: Found) -> Found:
    """Lean blocks, compiled one by one; the decoder's too."""
    return _ours(bench, "torch-compiled")


def ours_graphed(bench: Bench, _: Found) -> Found:
    """Compiled, and replayed as CUDA graphs."""
    return _ours(bench, "torch-graphed")


def ours_fp8(bench: Bench, _: Found) -> Found:
    """Compiled, with large products in 8-bit floats, in bfloat16. At a rehearsal without them: its device has none."""
    return _ours(in_bfloat16(bench), "torch-compiled", with_fp8(bench), videos=1)


def with_fp8(bench: Bench) -> BackendOptions:
    """The options of `ours_fp8`."""
    return BackendOptions(fp8=not bench.rehearsal)


def in_bfloat16(bench: Bench) -> Bench:
    """The same networks in bfloat16."""
    return _in_dtype(bench, torch.bfloat16)


def _in_dtype(bench: Bench, dtype: torch.dtype) -> Bench:
    other, networks = copy.copy(bench), copy.deepcopy(bench.plain)
    for part in (networks.unet, networks.vae, networks.conditioners.network):  # type: ignore[union-attr]
        part.to(dtype)
    other.dtype = dtype
    other.__dict__["plain"] = networks
    return other


def ready(bench: Bench, backend: str, tuning: BackendOptions | None = None) -> tuple[Checkpoint, Denoiser]:
    """A copy of the networks, as our engine would run them; eager at a rehearsal: its machine may have no compiler."""
    backend = "torch" if bench.rehearsal else backend
    checkpoint = bench.ours()
    if bench.dtype == torch.float16:
        upcast_encoder(checkpoint.vae)  # as diffusers' pipeline does
    cores = CpuThreads(torch.get_num_threads())
    options = resolve_options(backend, checkpoint, cores, tuning or BackendOptions())
    fuse(checkpoint.vae, ops=block_ops(options.kernels, bench.device))
    if backend != "torch":
        compile_blocks(checkpoint.vae)
    return checkpoint, make_denoiser(backend, checkpoint, cores, options)


def generation(bench: Bench, checkpoint: Checkpoint, denoiser: Denoiser, **fields: object) -> Callable[[], object]:
    """A whole generation, from a picture to the bytes of an mp4."""
    params = bench.params(**fields)

    def whole() -> bytes:
        with torch.inference_mode():
            row = sample(denoiser, prepare_row(checkpoint, params, [bench.still]))
            return encode_video(decode(checkpoint.vae, row.latents, params.decode_chunk_size), params.fps, "mp4")

    return whole


def _ours(bench: Bench, backend: str, tuning: BackendOptions | None = None, videos: int = 2) -> Found:
    checkpoint, denoiser = ready(bench, backend, tuning)
    inputs = bench.inputs(GUIDED)
    started = time.perf_counter()
    denoiser(inputs)
    figures: Found = {"first_call_s": time.perf_counter() - started}
    figures["step"] = bench.timed(lambda: denoiser(inputs)).as_dict()
    latents = inputs.latents[0]
    figures["decode"] = bench.timed(lambda: decode(checkpoint.vae, latents, 8), repeats=3, warm_ups=1).as_dict()
    frames = decode(checkpoint.vae, latents, 8)
    figures["encode"] = bench.timed(lambda: encode_video(frames, 7, "mp4"), repeats=3, warm_ups=0).as_dict()
    bench.warm_up(generation(bench, checkpoint, denoiser, num_inference_steps=1))
    whole = generation(bench, checkpoint, denoiser)
    figures["end_to_end"] = bench.timed(whole, repeats=videos, warm_ups=0).as_dict()
    return figures


def ays(bench: Bench, figures: Found) -> Found:
    """Ten Align-Your-Steps steps, on the fastest of ours."""
    checkpoint, denoiser = ready(bench, fastest(figures))
    steps = bench.steps if bench.rehearsal else 10
    whole = generation(bench, checkpoint, denoiser, num_inference_steps=steps, schedule="align-your-steps")
    return {"end_to_end": bench.timed(whole, repeats=2, warm_ups=1).as_dict(), "steps": steps}


def reuse(bench: Bench, figures: Found) -> Found:
    """Deep features reused by every second evaluation, on the fastest of ours that can."""
    backend = "torch" if fastest(figures) == "torch" else "torch-compiled"
    checkpoint, denoiser = ready(bench, backend, BackendOptions(reuse_every=2))
    whole = generation(bench, checkpoint, denoiser)
    return {"end_to_end": bench.timed(whole, repeats=2, warm_ups=1).as_dict(), "every": 2}


def fastest(figures: Found) -> str:
    """The backend of ours whose step took least, of those that were measured; the eager one where none was."""
    names = {"ours": "torch", "ours-compiled": "torch-compiled", "ours-graphed": "torch-graphed"}
    known = {names[part]: figures[part]["step"]["median_s"] for part in names if "step" in figures.get(part, {})}
    return min(known, key=lambda name: known[name], default="torch")


def attention(bench: Bench, _: Found) -> Found:
    """Every kernel that runs here, at the two shapes where attention is dearest."""
    shape, size = bench.latent, bench.preset.unet
    heads, width = size.heads[0], size.channels[0] // size.heads[0]
    tokens = shape.height * shape.width
    shapes = {
        "space": (GUIDED * shape.num_frames, heads, tokens, width),
        "time": (GUIDED * tokens, heads, shape.num_frames, width),
    }
    figures: Found = {}
    for name, dims in shapes.items():
        parts = [torch.randn(dims, device=bench.device, dtype=bench.dtype) for _ in range(3)]
        for kernel in usable(dims, bench.device, bench.dtype):
            if kernel == "math" and bench.device.type == "cuda":
                continue  # the matrix of scores would not fit
            run = KERNELS[kernel]
            figures[f"{name} {kernel}"] = bench.timed(lambda run=run, parts=parts: run(*parts)).as_dict()  # type: ignore[misc]
    return figures


def curve(bench: Bench, figures: Found) -> Found:
    """A call by number of places, and a guided call by number of frames."""
    _, denoiser = ready(bench, fastest(figures))
    most = min(2 if bench.rehearsal else 8, max_batch_size(bench.plain.unet, bench.latent))
    answers: Found = {"places": {}, "frames": {}}
    for batch_size in (count for count in (1, 2, 3, 4, 8) if count <= most):
        inputs = bench.inputs(batch_size)
        answers["places"][str(batch_size)] = bench.timed(lambda inputs=inputs: denoiser(inputs)).as_dict()  # type: ignore[misc]
    total = bench.latent.num_frames
    for frames in sorted({max(1, total // 4), max(1, total // 2), 14 if total > 14 else total, total}):
        inputs = bench.inputs(GUIDED, frames)
        answers["frames"][str(frames)] = bench.timed(lambda inputs=inputs: denoiser(inputs)).as_dict()  # type: ignore[misc]
    return answers


def equality(bench: Bench, figures: Found) -> Found:
    """Latents of diffusers and of ours after a few steps: in float32, and in the run's dtype against that.

    Tolerance, of the largest magnitude: 1e-3 between the two in float32 (a trained network enlarges rounding; a random
    one hardly). In half precision ours may be at most 1.5 times as far from diffusers' float32 as diffusers' own half
    precision is, plus 1e-3.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    steps = min(3, bench.steps)
    half = _latents(bench, bench.plain, steps, fastest(figures))
    relieve()
    single = _in_dtype(bench, torch.float32)
    theirs, mine = _latents(single, single.plain, steps, "torch")
    torch.backends.cudnn.allow_tf32 = True
    apart = {
        "float32": relative_difference(mine, theirs),
        "diffusers_half": relative_difference(half[0], theirs),
        "ours_half": relative_difference(half[1], theirs),
    }
    equal = apart["float32"] < 1e-3 and apart["ours_half"] < 1.5 * apart["diffusers_half"] + 1e-3
    return apart | {"steps": steps, "equal": equal}


def _latents(bench: Bench, plain: Checkpoint, steps: int, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' and ours, float32 on the CPU, from one picture, seed and settings."""
    # diffusers would draw half-precision noise in half precision, which is other noise.
    noise = draw_noise(7, TASK, bench.params().shape, bench.latent).latents[None].to(bench.device, bench.dtype)
    settings = pipeline_settings(bench, num_inference_steps=steps, output_type="latent", latents=noise)
    still, generator = bench.still, torch.Generator().manual_seed(7)
    theirs = bench.pipeline(plain)(still, generator=generator, **settings).frames[0]
    checkpoint, denoiser = ready(bench, backend)
    with torch.inference_mode():
        row = prepare_row(checkpoint, bench.params(num_inference_steps=steps), [still])
        mine = sample(denoiser, row).latents
    return theirs.float().cpu(), mine.float().cpu()


Part = Callable[[Bench, Found], Found]
PARTS: dict[str, Part] = {
    "ceiling": ceiling,
    "flops": flops,
    "diffusers-eager": diffusers_eager,
    "ours": ours,
    "ours-compiled": ours_compiled,
    "ours-graphed": ours_graphed,
    "ours-fp8": ours_fp8,
    "equality": equality,
    "ays": ays,
    "diffusers-compiled": diffusers_compiled,
    "attention": attention,
    "curve": curve,
    "reuse": reuse,
}
"""In the order in which they run: what everything is measured against first."""
ON_GPU = frozenset({"ours-graphed", "ours-fp8"})
"""Parts that need CUDA."""
COMPILING = frozenset({"ours-compiled", "ours-graphed", "ours-fp8", "diffusers-compiled"})
"""Parts that wait for a compiler; on a CPU they are run where asked for by name."""

"""The published svd-xt network (random weights, float16, 25x72x128 latents) to ONNX and through tensorrt-rtx, measured.

    python -m benchmarks.export_full_size [--folder DIR]

Each stage is a process of its own, so that its largest memory is its own. No GPU is needed. It takes a quarter of an
hour on two cores, up to 12 GB of memory and 8 GB of disk. Prints a table for RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.entry import run_main

LATENT = (72, 128)
SMALL = (8, 16)
"""Latent size of the parity call, which runs on the CPU, in float32: half precision takes an hour there."""
CHUNK = 8
"""Frames the decoder takes at once."""


def build(name: str, latent: tuple[int, int], dtype: str = "float16") -> Any:
    """The component `name` of svd-xt with random weights."""
    import torch

    from export.onnx import Component
    from model.backends.onnx_export import TRACED_BATCH, DecoderModule, DenoiserModule, Graph, Port, denoiser_graph
    from model.optimized.rewrites import fold_blends, rewrite_exactly
    from model.presets import preset
    from model.tasks import task
    from model.unet import build_unet
    from model.vae import build_vae

    torch.manual_seed(0)
    size, spec = preset("svd-xt"), task("image-to-video")
    if name == "unet":
        network = build_unet(size, spec).to(getattr(torch, dtype)).eval().requires_grad_(False)
        rewrite_exactly(network, context_tokens=1)
        fold_blends(network)
        graph = denoiser_graph(spec, network.config, height=latent[0], width=latent[1], dtype=dtype)
        return Component(DenoiserModule(network), graph, {"batch": TRACED_BATCH}, {"batch": 2})
    vae = build_vae(size).half().eval().requires_grad_(False)
    rewrite_exactly(vae)
    fold_blends(vae)
    ports = Port("latents", "float16", ("frames", 4, *latent)), Port("frames", "float16", ("frames", 3, *LATENT))
    return Component(DecoderModule(vae), Graph(name, ports[:1], ports[1:]), {"frames": 3}, {"frames": CHUNK})


def export(name: str, folder: Path, latent: tuple[int, int]) -> dict[str, float]:
    from export.onnx import export_component

    component = build(name, latent)
    started = time.perf_counter()
    file = export_component(component, folder)
    took = time.perf_counter() - started
    return {"seconds": took, "bytes": sum(path.stat().st_size for path in folder.glob(f"{file.name}*"))}


def compile_stage(name: str, folder: Path) -> dict[str, float]:
    """Compile the file that the stage before wrote; its ports are read from it, so no weights are built again."""
    import onnx
    from torch import nn

    from export.onnx import Component
    from export.tensorrt import BuildOptions, compile_engine
    from model.backends.onnx_export import Graph, Port

    graph_def = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
    dtypes = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
    ports = []
    for value in graph_def.input:
        kind = value.type.tensor_type
        shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
        ports.append(Port(value.name, dtypes[kind.elem_type], shape))
    largest = {"batch": 2} if name == "unet" else {"frames": CHUNK}
    component = Component(nn.Identity(), Graph(name, tuple(ports), ()), {}, largest)
    engine = folder / f"{name}.engine"
    report = compile_engine("tensorrt_rtx", component, folder / f"{name}.onnx", engine, BuildOptions())
    return {"seconds": report.seconds, "bytes": report.engine_bytes}


def parity(folder: Path) -> dict[str, float]:
    """One denoiser call at a smaller size, two places at two noise levels: torch against onnxruntime, on the CPU."""
    import torch

    from export.onnx import export_component
    from model.backends.onnxruntime import OnnxGraph
    from model.denoiser import CpuThreads
    from model.optimized.rewrites import relative_difference

    component = build("unet", SMALL, "float32")
    example = component.graph.example({"batch": 2})
    example["timestep"] = torch.tensor([1.1, -0.4])
    small = folder / "small"
    small.mkdir()
    file = export_component(component, small)
    started = time.perf_counter()
    with torch.inference_mode():
        expected = component.module(**example)
    took = time.perf_counter() - started
    del component
    graph = OnnxGraph(file, torch.device("cpu"), CpuThreads(torch.get_num_threads()))
    started = time.perf_counter()
    actual = graph.run(example, expected.shape)
    return {
        "torch_seconds": took,
        "onnxruntime_seconds": time.perf_counter() - started,
        "difference": relative_difference(actual.float(), expected.float()),
    }


STAGES: dict[str, Callable[[Path], dict[str, float]]] = {
    "onnx unet": lambda folder: export("unet", folder, LATENT),
    "tensorrt-rtx unet": lambda folder: compile_stage("unet", folder),
    "onnx vae_decoder": lambda folder: export("vae_decoder", folder, LATENT),
    "tensorrt-rtx vae_decoder": lambda folder: compile_stage("vae_decoder", folder),
    "parity unet": parity,
}


def run_stage(name: str, folder: Path) -> dict[str, float]:
    """The stage, in a process of its own."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.export_full_size", "--stage", name, "--folder", str(folder.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{name} failed:\n{done.stderr[-4000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(measured, file=sys.stderr, flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--folder", type=Path, help="for the files; a temporary one when left out")
    options = parser.parse_args()
    if options.stage:
        measured = STAGES[options.stage](options.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(measured | {"peak_bytes": peak}))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        stages = {name: run_stage(name, Path(folder)) for name in STAGES}
    print("| stage | seconds | largest memory | result |\n| --- | ---: | ---: | --- |")
    for name, measured in stages.items():
        if "bytes" in measured:
            took, result = measured["seconds"], f"{measured['bytes'] / 1e9:.2f} GB"
        else:
            took = measured["onnxruntime_seconds"]
            result = (
                f"difference {measured['difference']:.1e} of the largest value; torch {measured['torch_seconds']:.0f} s"
            )
        print(f"| {name} | {took:.0f} | {measured['peak_bytes'] / 1e9:.1f} GB | {result} |")


if __name__ == "__main__":
    run_main(main)

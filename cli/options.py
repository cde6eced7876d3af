"""Values that options may take, and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class SolverChoice(StrEnum):
    """Solvers (model.params.SOLVERS)."""

    euler = "euler"
    heun = "heun"
    dpmpp_2m = "dpmpp-2m"


class ScheduleChoice(StrEnum):
    """Schedules (model.params.SCHEDULES)."""

    karras = "karras"
    align_your_steps = "align-your-steps"


class ResizeChoice(StrEnum):
    """How a picture meets the clip's aspect (model.params.ResizeMode)."""

    crop = "crop"
    fit = "fit"
    stretch = "stretch"


class FormatChoice(StrEnum):
    """Containers (model.params.OutputFormat)."""

    mp4 = "mp4"
    webm = "webm"
    gif = "gif"


class DenoiserChoice(StrEnum):
    """Denoiser backends (model.backends.registry)."""

    auto = "auto"
    torch = "torch"
    torch_compiled = "torch-compiled"
    torch_graphed = "torch-graphed"
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"


class DtypeChoice(StrEnum):
    """Of the networks' weights (serving.engine.settings.DtypeName)."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Denoiser = Annotated[DenoiserChoice, typer.Option(help="What runs the denoiser. auto: torch, or an export's graphs.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1. auto: CUDA where there is one.")]
Dtype = Annotated[DtypeChoice, typer.Option(help="Of the weights; the smaller two are for GPUs.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. [all cores]")]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="The same bits for the same request, whatever runs beside it; slower.")
]
Attention = Annotated[
    str,
    typer.Option(help="Attention kernel: sdpa, flash, efficient, cudnn, xformers, flash3. auto: measured on a GPU."),
]
ReuseEvery = Annotated[
    int, typer.Option("--reuse-every", min=1, help="Denoiser calls that share deep features; above 1 costs quality.")
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LOW HIGH", help="Noise levels at which to guide; elsewhere a call is half. Costs quality."),
]
VramBudget = Annotated[
    float | None, typer.Option(min=0.1, help="GiB of GPU memory to stay within, by a computed plan. [all there is]")
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for a program.")]

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
    """Denoiser backends (model.backends.makers)."""

    auto = "auto"
    torch = "torch"
    torch_compiled = "torch-compiled"
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
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for a program.")]

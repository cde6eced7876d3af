"""Options that several commands share: enumerations, and the engine's options, built from EngineSettings.

Torch-free; `stillmotion --help` imports it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, get_args

import typer

from serving.engine.settings import EngineSettings


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


Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for a program.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]

_ENGINE: dict[str, tuple[str, Any]] = {
    "backend": (
        "denoiser",
        Annotated[DenoiserChoice, typer.Option(help="What runs the denoiser. auto: torch, or an export's graphs.")],
    ),
    "device": (
        "device",
        Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1. auto: CUDA where there is one.")],
    ),
    "dtype": (
        "dtype",
        Annotated[DtypeChoice, typer.Option(help="Of the weights; the smaller two are for GPUs.")],
    ),
    "threads": ("threads", Annotated[int | None, typer.Option(min=1, help="CPU threads. [all cores]")]),
    "max_batch": (
        "max_batch",
        Annotated[
            int | None,
            typer.Option(
                min=1, help="Clips in one denoiser call, at most; a guided request is two. [what pays, measured]"
            ),
        ],
    ),
    "deterministic": (
        "deterministic",
        Annotated[
            bool,
            typer.Option(
                "--deterministic", help="The same bits for the same request, whatever runs beside it; slower."
            ),
        ],
    ),
    "attention": (
        "attention",
        Annotated[
            str,
            typer.Option(
                help="Attention kernel: sdpa, flash, efficient, cudnn, xformers, flash3. auto: measured on a GPU."
            ),
        ],
    ),
    "reuse_every": (
        "reuse_every",
        Annotated[
            int,
            typer.Option(
                "--reuse-every", min=1, help="Denoiser calls that share deep features; above 1 costs quality."
            ),
        ],
    ),
    "guidance_interval": (
        "guidance_interval",
        Annotated[
            tuple[float, float] | None,
            typer.Option(
                metavar="LOW HIGH", help="Noise levels at which to guide; elsewhere a call is half. Costs quality."
            ),
        ],
    ),
    "vram_budget_gib": (
        "vram_budget",
        Annotated[
            float | None,
            typer.Option(min=0.1, help="GiB of GPU memory to stay within, by a computed plan. [all there is]"),
        ],
    ),
}
"""Field of EngineSettings -> the option's name, its type and help. Defaults are EngineSettings' own."""


def engine_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these fields of EngineSettings; it gets them as one dict, `engine_options`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_options(**values: Any) -> None:
            options = {name: values.pop(_ENGINE[name][0]) for name in names}
            plain = {name: value.value if isinstance(value, StrEnum) else value for name, value in options.items()}
            command(**values, engine_options=plain)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name == "engine_options":
                parameters += [_engine_parameter(name) for name in names]
            else:
                parameters.append(parameter)
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_options

    return decorate


def _engine_parameter(name: str) -> inspect.Parameter:
    option, annotation = _ENGINE[name]
    default: Any = {field.name: field.default for field in fields(EngineSettings)}[name]
    kind = get_args(annotation)[0]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        default = kind(default)
    return inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

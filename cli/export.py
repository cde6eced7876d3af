"""`stillmotion export`: a checkpoint becomes a version in a model repository; or the one before is served again."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cli.options import Json

if TYPE_CHECKING:
    from export.pipeline import Backend
    from export.repository import Installed


class BackendChoice(StrEnum):
    """What the export is for (export.pipeline.Backend), or the weights as they are (install_checkpoint)."""

    torch = "torch"
    onnx = "onnx"
    openvino = "openvino"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class DtypeChoice(StrEnum):
    """Dtypes of the exported weights (export.parity.TOLERANCES)."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def export(
    model: Annotated[
        str, typer.Argument(help="A shipped checkpoint, a folder, a hub id or a file; REPOSITORY/NAME with --rollback.")
    ],
    out: Annotated[Path | None, typer.Option(help="The model repository; the version goes to OUT/NAME.")] = None,
    backend: Annotated[BackendChoice, typer.Option(help="What to export for.")] = BackendChoice.onnx,
    dtype: Annotated[
        DtypeChoice, typer.Option(help="Of the weights. auto: float32 in graphs, the server's own choice for torch.")
    ] = DtypeChoice.auto,
    width: Annotated[int | None, typer.Option(help="Of the video, in pixels. [the checkpoint's]")] = None,
    height: Annotated[int | None, typer.Option(help="Of the video, in pixels. [the checkpoint's]")] = None,
    free_size: Annotated[
        bool, typer.Option(help="Let the graphs take other sizes too; engines take this one only.")
    ] = True,
    max_batch: Annotated[int, typer.Option(min=1, help="Places of one call that an engine takes, at most.")] = 4,
    capability: Annotated[
        list[str] | None,
        typer.Option(help="Compute capability to compile for with tensorrt-rtx, such as 8.9; may be repeated."),
    ] = None,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Engines without weights, put in when loaded (needs a GPU).")
    ] = False,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="8-bit floats in the denoiser's large layers; changes the video a little.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="One engine for Ampere and later (tensorrt only).")
    ] = False,
    timing_cache: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Keeps what a build measured, for the next (tensorrt only).")
    ] = None,
    build_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="How hard TensorRT searches for fast kernels. [its own choice]")
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="For the parity gate; may be repeated. [drawn ones]"),
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="Versions kept in the repository.")] = 3,
    rollback: Annotated[bool, typer.Option("--rollback", help="Serve the version before this one again.")] = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to ONNX or TensorRT, prove it equal, and install it in a model repository."""
    if rollback:
        from export.repository import roll_back

        _tell(roll_back(Path(model)), as_json)
        return
    if out is None:
        raise typer.BadParameter("name the model repository", param_hint="--out")

    if backend is BackendChoice.torch:
        tuned = (width, height, capability, picture, timing_cache, build_level, strip_weights, fp8, hardware_compatible)
        if any(value is not None and value is not False for value in tuned) or not free_size or max_batch != 4:
            raise typer.BadParameter("torch takes the weights as they are; --dtype and --keep hold, the others do not")
        _tell(_as_it_is(model, out, dtype, keep), as_json)
        return

    from cli.progress import reporting
    from export.onnx import ExportSize
    from export.pipeline import ExportOptions, export_model
    from export.tensorrt import BuildOptions
    from model.platform import resolve_dtype
    from model.sources.source import find

    precision = resolve_dtype(dtype.value, "cpu")
    entry = find(model, precision)
    options = ExportOptions(
        backend=cast("Backend", backend.value),
        dtype=precision,
        size=ExportSize(height or entry.height, width or entry.width, free_size, max_batch),
        pictures=tuple(picture or ()),
        keep=keep,
        build=BuildOptions(tuple(capability or ()), hardware_compatible, strip_weights, timing_cache, build_level),
        fp8=fp8,
    )
    with reporting() as report:
        installed = export_model(entry, out, options, report)
    _tell(installed, as_json)


def _as_it_is(model: str, out: Path, dtype: DtypeChoice, keep: int) -> Installed:
    from export.pipeline import install_checkpoint
    from model.platform import resolve_dtype
    from model.sources.source import find

    return install_checkpoint(
        find(model, resolve_dtype(dtype.value, "auto")), out, parameters={"dtype": dtype.value}, keep=keep
    )


def _tell(installed: Installed, as_json: bool) -> None:
    answer = {
        "model": str(installed.folder),
        "served": installed.served,
        "versions": list(installed.versions),
        "labels": dict(installed.labels),
    }
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        versions = ", ".join(map(str, installed.versions))
        typer.echo(f"{installed.folder}  serves version {installed.served} of {versions}")

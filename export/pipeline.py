"""The export pipeline: checkpoint -> ONNX -> parity gate -> engines -> a version in a model repository.

Everything is written into the version's own hidden folder and installed only when every stage passed.
`install_checkpoint` installs a checkpoint as it is instead: torch runs its weights inside Triton, and nothing is traced
or compiled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Literal

import torch
from PIL import Image

from export.fp8 import quantize
from export.onnx import Component, ExportSize, components, export_component, rewrite
from export.parity import (
    FP8_TOLERANCE,
    TOLERANCES,
    Measured,
    Tolerance,
    check_components,
    check_video,
    sample_videos,
    torch_outputs,
)
from export.repository import Installed, install
from export.samples import BATCHES, calibration_inputs, make_samples, real_inputs
from export.tensorrt import Builder, BuildOptions, BuildReport, built_by, check_options, compile_engine, load_builder
from export.triton_config import Instances
from model.backends.onnx_export import require_onnx
from model.backends.openvino import require_openvino
from model.catalog import PROFILE, SIDECAR, ModelEntry, describe
from model.checkpoint import load
from model.errors import CheckpointError, InvalidRequest
from model.export_manifest import ENGINE_FOLDER, MANIFEST, ONNX_FOLDER, ExportManifest, file_hash
from model.sources.hub import wanted_files

Backend = Literal["onnx", "openvino", "tensorrt", "tensorrt-rtx"]
ProgressCallback = Callable[[str, int, int], None]
"""Phase, done, total."""

BUILDERS: dict[Backend, Builder | None] = {
    "onnx": None,
    "openvino": None,
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
SMALL_FILES = (
    *("model_index.json", SIDECAR, "conditioning.safetensors", "README.md"),
    *("unet/config.json", "vae/config.json", "image_encoder/config.json", "text_encoder/config.json"),
    *("scheduler", "feature_extractor", "tokenizer"),
)
"""The checkpoint's files that a version has: all but the weights of its networks."""
BUILD_REPORT = "build.json"
TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to export and how.

    Args:
        dtype: of the networks' weights (an autoencoder that overflows in float16 stays in float32).
        size: None for the checkpoint's own, with free height and width.
        pictures: for the parity gate, held-out ones best; drawn ones fill up what is missing.
        tolerance: None for that of the dtype (export.parity.TOLERANCES).
        keep: versions kept in the repository.
        build: how engines are compiled.
        fp8: let the denoiser's large layers read 8-bit floats (export.fp8); the gate's tolerance is FP8_TOLERANCE then.
    """

    backend: Backend
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    size: ExportSize | None = None
    pictures: tuple[Path, ...] = ()
    tolerance: Tolerance | None = None
    keep: int = 3
    build: BuildOptions = field(default_factory=BuildOptions)
    fp8: bool = False


def export_model(
    entry: ModelEntry,
    repository: Path,
    options: ExportOptions,
    report: ProgressCallback = lambda _phase, _done, _total: None,
) -> Installed:
    """Export a checkpoint and install it as the next version of REPOSITORY/NAME.

    Raises:
        MissingExtra: a tool the backend needs is not installed.
        InvalidRequest: an option that does not hold here, or a size the checkpoint cannot make.
        CheckpointError: it is an export already, or does not load.
        ParityError: a graph does not give what torch gives.
        BuildFailed: TensorRT refused a graph.
        StorageFull: the disk filled.
    """
    if entry.exported:
        raise CheckpointError(f"{entry.path} is an export itself; export the checkpoint it was made from")
    _check_tools(options)
    size = options.size or ExportSize(entry.height, entry.width)

    def fill(folder: Path) -> None:
        _fill(entry, replace(options, size=size), size, folder, report)

    parameters = {"backend": options.backend, "dtype": options.dtype, "checkpoint_version": entry.version}
    return install(
        repository, entry.name, fill, keep=options.keep, parameters=parameters, warm_up=warm_up_request(entry)
    )


def install_checkpoint(
    entry: ModelEntry,
    repository: Path,
    *,
    parameters: Mapping[str, str] | None = None,
    instances: Instances | None = None,
    keep: int = 3,
) -> Installed:
    """Install a copy of a checkpoint's folder as the next version of REPOSITORY/NAME.

    The version's checkpoint has the same version hash as the original, and makes the same videos.

    Args:
        parameters: engine settings by name (serving.triton.hosting), such as `dtype` or `deterministic`.
        instances: how many engines, and on what; None for those of the version before, at first one a GPU.
        keep: versions kept.

    Raises:
        CheckpointError: it is an export, which is in a repository already.
        StorageFull: the disk filled; nothing is installed.
    """
    if entry.exported:
        raise CheckpointError(f"{entry.path} is an export, and in a model repository already", param="model")

    def fill(folder: Path) -> None:
        skip = shutil.ignore_patterns(PROFILE, "model.py")
        if not (entry.path / SIDECAR).exists():
            skip = _unread(entry)
        shutil.copytree(entry.path, folder, dirs_exist_ok=True, ignore=skip)

    config_parameters = {"backend": "torch", "checkpoint_version": entry.version} | dict(parameters or {})
    return install(
        repository,
        entry.name,
        fill,
        keep=keep,
        parameters=config_parameters,
        warm_up=warm_up_request(entry),
        instances=instances,
    )


def _unread(entry: ModelEntry) -> Callable[[str, list[str]], set[str]]:
    """What `copytree` leaves out of published weights: files that are not read, such as those of another precision."""
    files = [file.relative_to(entry.path).as_posix() for file in entry.path.rglob("*") if file.is_file()]
    wanted = {*wanted_files(files, entry.precision)} - {PROFILE, "model.py"}
    folders = {parent.as_posix() for file in wanted for parent in PurePosixPath(file).parents}

    def ignored(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(entry.path)
        return {name for name in names if (inside / name).as_posix() not in wanted | folders}

    return ignored


def warm_up_request(entry: ModelEntry) -> dict[str, bytes]:
    """Inputs of one short generation, as files of Triton's warm-up."""
    params = {"num_inference_steps": 1, "seed": 0, **entry.task.sample_request}
    grey = BytesIO()
    Image.new("RGB", (entry.width, entry.height), "grey").save(grey, "PNG")
    count, picture = len(entry.task.pictures), grey.getvalue()
    message = {"id": "warm-up", "params": params, "parts": [len(picture)] * count}
    return {"request": json.dumps(message).encode()} | ({"pictures": picture * count} if count else {})


def _check_tools(options: ExportOptions) -> None:
    """Refuse before anything is computed."""
    require_onnx("export")
    builder = BUILDERS[options.backend]
    if builder is not None:
        load_builder(builder)
        check_options(builder, options.build)
    if options.backend == "openvino":
        require_openvino()
        if options.dtype == "bfloat16" or options.fp8:
            raise InvalidRequest("openvino takes graphs in float32 and float16", param="dtype")
    if options.dtype not in TOLERANCES:
        raise InvalidRequest(f"dtype must be one of {', '.join(TOLERANCES)}", param="dtype")


def _fill(entry: ModelEntry, options: ExportOptions, size: ExportSize, folder: Path, report: ProgressCallback) -> None:
    """Write a version's files."""
    checkpoint = load(entry, dtype=getattr(torch, options.dtype))
    if options.dtype == "float16" and checkpoint.vae.config["force_upcast"]:
        checkpoint.vae.float()
    samples = make_samples(size.height, size.width, options.pictures)
    parts = components(checkpoint, size)
    inputs = real_inputs(checkpoint, parts, samples)
    expected = torch_outputs(parts, inputs)
    videos = {together: sample_videos(checkpoint, samples, together) for together in BATCHES}
    rewrite(checkpoint)
    (folder / ONNX_FOLDER).mkdir()
    files: dict[str, Path] = {}
    for index, part in enumerate(parts):
        report(f"onnx {part.name}", index, len(parts))
        files[part.name] = export_component(part, folder / ONNX_FOLDER)
    report("onnx", len(parts), len(parts))
    if options.fp8:
        layers = quantize(files["unet"], calibration_inputs(checkpoint, parts[0], samples), files["unet"])
        report(f"fp8: {layers} layers of the denoiser", 0, 0)
    tolerance = options.tolerance or (FP8_TOLERANCE if options.fp8 else TOLERANCES[options.dtype])
    runtime = "openvino" if options.backend == "openvino" else "onnxruntime"
    measured = check_components(
        parts, files, inputs, expected, tolerance, runtime, lambda message: report(message, 0, 0)
    )
    build_reports = _compile(parts, files, folder, options, report)
    _copy_small(entry, folder, size)
    manifest = _manifest(entry, options, size, folder, measured)
    manifest.write(folder)
    exported = load(describe(folder, entry.name))
    measured += check_video(videos, exported, samples, tolerance)
    report(f"parity video: {min(one.difference for one in measured if one.what == 'video'):.1f} dB", 0, 0)
    if build_reports:
        (folder / BUILD_REPORT).write_text(json.dumps([one.as_dict() for one in build_reports], indent=2) + "\n")
    _manifest(entry, options, size, folder, measured).write(folder)


def _compile(
    parts: Sequence[Component], files: dict[str, Path], folder: Path, options: ExportOptions, report: ProgressCallback
) -> list[BuildReport]:
    builder = BUILDERS[options.backend]
    if builder is None:
        return []
    (folder / ENGINE_FOLDER).mkdir()
    reports = []
    for index, part in enumerate(parts):
        report(f"{options.backend} {part.name}", index, len(parts))
        engine = folder / ENGINE_FOLDER / f"{part.name}.engine"
        reports.append(compile_engine(builder, part, files[part.name], engine, options.build))
    report(options.backend, len(parts), len(parts))
    return reports


def _copy_small(entry: ModelEntry, folder: Path, size: ExportSize) -> None:
    for name in SMALL_FILES:
        source, target = entry.path / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    # Size and defaults are the entry's, also where the checkpoint is a published one without a sidecar.
    sidecar = json.loads((folder / SIDECAR).read_text()) if (folder / SIDECAR).exists() else {}
    sidecar |= {"task": entry.task.name, "height": size.height, "width": size.width, "defaults": entry.defaults}
    (folder / SIDECAR).write_text(json.dumps(sidecar, indent=2) + "\n")


def _manifest(
    entry: ModelEntry, options: ExportOptions, size: ExportSize, folder: Path, measured: Sequence[Measured]
) -> ExportManifest:
    builder = BUILDERS[options.backend]
    written = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return ExportManifest(
        checkpoint=entry.name,
        checkpoint_version=entry.version,
        task=entry.task.name,
        backend=options.backend,
        dtype=options.dtype,
        height=size.height,
        width=size.width,
        free_size=size.free,
        files={path.relative_to(folder).as_posix(): file_hash(path) for path in written},
        tools=_tools(),
        parity=tuple(one.as_dict() for one in measured),
        built=built_by(builder, options.build) if builder else None,
        fp8=options.fp8,
    )


def _tools() -> dict[str, str]:
    versions = {}
    for name in ("stillmotion-server", *TOOLS):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that was not installed
            versions[name] = "not installed"
    return versions

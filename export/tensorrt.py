"""An ONNX graph as a TensorRT engine: one builder for `tensorrt` and `tensorrt_rtx`, whose Python APIs are nearly one.

tensorrt_rtx compiles ahead of time without a GPU, for RTX GPUs (compute capability 7.5, 8.0, 8.6, 8.9, 12.0);
tensorrt compiles on the GPU that will run the engine. Networks are strongly typed: dtypes are the graph's own. An
optimization profile a graph: its free axes from 1 to their largest, best at the largest batch; height and width are
the export's.
"""

from __future__ import annotations

import importlib
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from export.onnx import Component
from model.errors import InvalidRequest, MissingExtra, StillmotionError
from model.export_manifest import EngineBuild

Builder = Literal["tensorrt", "tensorrt_rtx"]

FIXED_AXES = ("height", "width", "8*height", "8*width")
"""Free in a graph perhaps, but one size in an engine."""


class BuildFailed(StillmotionError):
    """TensorRT did not parse or did not compile a graph; nothing was installed."""

    code = "build_failed"


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How engines are compiled.

    Args:
        capabilities: CUDA compute capabilities to compile for, such as `8.9`; empty for the builder's own choice
            (tensorrt: the GPU here; tensorrt_rtx: every RTX GPU from 8.0).
        hardware_compatible: one engine for Ampere and everything later, slower (tensorrt only).
        strip_weights: leave the weights out; they are refitted from the ONNX file when the engine is loaded, so that
            a finetune of the same network needs no new engine (needs a GPU with tensorrt_rtx).
        timing_cache: read and written where given, so that the next build measures less (tensorrt only).
        level: how hard to search, 0 to 5; None for the builder's default.
    """

    capabilities: tuple[str, ...] = ()
    hardware_compatible: bool = False
    strip_weights: bool = False
    timing_cache: Path | None = None
    level: int | None = None


@dataclass(frozen=True, slots=True)
class BuildReport:
    """One engine: bytes of it and of memory, seconds.

    Args:
        peak_bytes: the process's largest resident memory so far.
        layers: of the network TensorRT read.
        profile: smallest, best and largest shape of each input.
    """

    name: str
    seconds: float
    engine_bytes: int
    peak_bytes: int
    layers: int
    profile: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

    def as_dict(self) -> dict[str, object]:
        """For the manifest."""
        return asdict(self)


def load_builder(builder: Builder) -> Any:
    """The builder's Python module.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(builder)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"compiling with {builder}", builder.replace("_", "-")) from error


def profile_of(component: Component) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Smallest, best and largest shape of each input of a component."""
    largest = component.largest
    least = {axis: size if axis in FIXED_AXES else 1 for axis, size in largest.items()}
    return {port.name: (port.sized(least), port.sized(largest), port.sized(largest)) for port in component.graph.inputs}


def compile_engine(
    builder: Builder, component: Component, onnx_file: Path, engine_file: Path, options: BuildOptions
) -> BuildReport:
    """Compile one graph and write its engine.

    Raises:
        MissingExtra: the builder is not installed.
        InvalidRequest: an option this builder does not have.
        BuildFailed: TensorRT refused the graph; the message is its own.
    """
    trt = load_builder(builder)
    check_options(builder, options)
    started = time.perf_counter()
    log = _log(trt)
    maker = trt.Builder(log)
    network = maker.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_file)):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise BuildFailed(f"{builder} does not take {onnx_file.name}: {errors}")
    config = maker.create_builder_config()
    profile, shapes = maker.create_optimization_profile(), profile_of(component)
    for name, (least, best, largest) in shapes.items():
        profile.set_shape(name, least, best, largest)
    config.add_optimization_profile(profile)
    keep_timings = _configure(trt, builder, config, options)
    engine = maker.build_serialized_network(network, config)
    if engine is None:
        raise BuildFailed(f"{builder} did not compile {onnx_file.name}: {log.last or 'it gave no reason'}")
    with engine_file.open("wb") as stream:
        stream.write(engine)
    keep_timings()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = time.perf_counter() - started
    return BuildReport(component.name, seconds, engine_file.stat().st_size, peak, network.num_layers, shapes)


def built_by(builder: Builder, options: BuildOptions) -> EngineBuild:
    """What the manifest says of engines compiled here: a machine that does not match it refuses them."""
    trt = load_builder(builder)
    if builder == "tensorrt_rtx":
        return EngineBuild(builder, str(trt.__version__), options.capabilities, None, options.strip_weights)
    import torch

    major, minor = torch.cuda.get_device_capability()
    capabilities = () if options.hardware_compatible else (f"{major}.{minor}",)
    return EngineBuild(builder, str(trt.__version__), capabilities, torch.cuda.get_device_name(), options.strip_weights)


def check_options(builder: Builder, options: BuildOptions) -> None:
    """Raise InvalidRequest where the builder has no such option, or this machine cannot compile with it."""
    import torch

    gpu = torch.cuda.is_available()
    if builder == "tensorrt" and not gpu:
        raise InvalidRequest(
            "tensorrt compiles on the GPU that will run the engine, and there is none here: export there, or take "
            "--backend tensorrt-rtx or onnx",
            param="backend",
        )
    if builder == "tensorrt" and options.capabilities:
        raise InvalidRequest("tensorrt compiles for the GPU it runs on; name no capabilities", param="capabilities")
    if builder == "tensorrt_rtx" and (options.hardware_compatible or options.timing_cache):
        raise InvalidRequest("tensorrt_rtx has no hardware compatibility level and no timing cache", param="backend")
    if builder == "tensorrt_rtx" and options.strip_weights and not gpu:
        raise InvalidRequest("tensorrt_rtx strips weights only where there is a GPU", param="strip_weights")


def _configure(trt: Any, builder: Builder, config: Any, options: BuildOptions) -> Callable[[], None]:
    """Apply the options; what to call after the build to keep what it measured."""
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if builder == "tensorrt_rtx" and options.capabilities:
        config.num_compute_capabilities = len(options.capabilities)
        for index, capability in enumerate(options.capabilities):
            config.set_compute_capability(_capability(trt, capability), index)
    file = options.timing_cache
    if file is None:
        return lambda: None
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)

    def keep() -> None:
        file.write_bytes(config.get_timing_cache().serialize())

    return keep


def _capability(trt: Any, requested: str) -> Any:
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    name = "SM" + requested.replace(".", "")
    if name not in known:
        supported = ", ".join(f"{one[2:-1]}.{one[-1]}" for one in sorted(known))
        raise InvalidRequest(f"tensorrt_rtx compiles for {supported}, not {requested}", param="capabilities")
    return known[name]


def _log(trt: Any) -> Any:
    """TensorRT's logger, which keeps the last error for the exception."""

    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps errors, drops the rest."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = message

    return Log()

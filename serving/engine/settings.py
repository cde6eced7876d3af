"""The engine's settings: the source of command-line options, config.pbtxt parameters and manifest entries.

Each field carries an `EngineOption`: its name outside, how its text is read, its help, and whether the pixels depend on
it. Imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from model.errors import InvalidRequest
from model.platform import DtypeName
from model.shapes import CHUNK_PLANS, ChunkPlan

_OFF: Final = "off"
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}
_KEY: Final = "option"
_TORCH_DEVICE: Final = re.compile(r"cpu|cuda:\d+")
_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+)?|xpu(:\d+)?|npu")


def _boolean(text: str) -> bool:
    return _BOOLEANS[text.lower()]


def _seconds(text: str) -> float | None:
    return None if text.lower() == _OFF else float(text)


def _interval(text: str) -> tuple[float, float]:
    low, high = text.split()
    return float(low), float(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOption:
    """How one field of EngineSettings is set and recorded outside the engine.

    Args:
        name: of the parameter in config.pbtxt, and of the command-line option (with dashes for underscores).
        read: the value of a parameter's text. Raises KeyError, ValueError.
        commands: the commands that have it as an option.
        help, choices, metavar, minimum: of the command-line option.
        recorded: whether the pixels may depend on it, so that a video's manifest names it.
        required: whether a manifest that lacks it is incomplete; else it had the default (earlier versions).
    """

    name: str
    read: Callable[[str], Any] = str
    commands: tuple[str, ...] = ()
    help: str = ""
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    minimum: float | None = None
    recorded: bool = False
    required: bool = False


def _option(name: str, read: Callable[[str], Any] = str, **details: Any) -> dict[str, EngineOption]:
    return {_KEY: EngineOption(name=name, read=read, **details)}


_EVERYWHERE: Final = ("generate", "serve", "batch")
_ONE_MACHINE: Final = ("generate", "serve")
_LOADING: Final = (*_EVERYWHERE, "pull", "check")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Choices that hold for an engine's life; each is written into every video's manifest where it can change pixels.

    Args:
        deterministic: the same bits whatever a request shares its calls with, and wherever it was interrupted.
        backend: which denoiser (model.backends.registry); `auto` takes what the folder holds, weights or graphs, and on
            a CPU the fastest of those measured to be equal (serving.engine.backend_choice).
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`; `xpu`, `xpu:1` and `npu` for Intel's GPUs
            and NPUs, by OpenVINO.
        dtype: of the networks' weights; `auto` is float16 on CUDA and float32 on a CPU.
        threads: CPU threads at work on one thing; None for as many as there are cores to run on.
        attention: kernel of a denoiser in torch (model.optimized.attention); `auto` measures on a GPU, and is
            torch's own choice on a CPU and in deterministic mode.
        kernels: of a denoiser in torch on a GPU, for what is between matrix products (model.optimized.kernels); `auto`
            takes those that are faster than torch's own operations as measured, and none in deterministic mode.
        reuse_every: evaluations for which a row's deep features serve (model.optimized.feature_cache); 1 reuses
            none. Costs quality.
        decode_chunk_plan: how a clip is split into chunks of decode_chunk_size frames (model.shapes.chunk_sizes).
        guidance_interval: noise levels (low, high] at which rows are guided; None for all. Costs quality.
        fp8: large matrix products of a denoiser in torch in 8-bit floats (model.optimized.fp8); with dtype bfloat16, on
            a GPU that has them. Costs quality.
        vram_budget_gib: memory of the GPU to stay within (model.memory.plan); None for no plan.
        cfg_parallel: a second device, on which a copy of the denoiser computes the other half of the slots of each call
            (model.backends.wrappers); None for none.
        max_batch: batch slots of one denoiser call, at most (a guided request takes two); None lets the measured
            profile choose.
        max_rows: requests being encoded, denoised or decoded at once; the others wait or are parked.
        mux_threads: threads that encode finished videos beside the step loop.
        warm_up: run every network once at the start and measure what is not known yet, so that the first request is
            not the slow one and has an honest estimate.
        checkpoint_every_s: seconds between two Checkpointed events of a job; None for none.
    """

    deterministic: bool = field(
        default=False,
        metadata=_option(
            "deterministic",
            _boolean,
            commands=_EVERYWHERE,
            help="The same bits for the same request, whatever runs beside it; slower.",
            recorded=True,
            required=True,
        ),
    )
    backend: str = field(
        default="auto",
        metadata=_option(
            "denoiser",
            commands=_EVERYWHERE,
            help="What runs the denoiser. auto: torch or what was measured to be faster, or an export's graphs.",
            choices=("auto", "torch", "torch-compiled", "torch-graphed", "onnxruntime", "openvino", "tensorrt"),
            recorded=True,
            required=True,
        ),
    )
    device: str = field(
        default="auto",
        metadata=_option(
            "device",
            commands=_LOADING,
            help="auto, cpu, cuda or cuda:1; with openvino xpu (an Intel GPU) or npu. auto: CUDA where there is one.",
            recorded=True,
            required=True,
        ),
    )
    dtype: DtypeName = field(
        default="auto",
        metadata=_option(
            "dtype",
            commands=_LOADING,
            help="Of the weights. auto: float16 on CUDA, float32 on a CPU.",
            choices=("auto", "float32", "float16", "bfloat16"),
            recorded=True,
            required=True,
        ),
    )
    threads: int | None = field(
        default=None,
        metadata=_option(
            "threads",
            int,
            commands=_EVERYWHERE,
            help="CPU threads. [all cores]",
            minimum=1,
            recorded=True,
            required=True,
        ),
    )
    attention: str = field(
        default="auto",
        metadata=_option(
            "attention",
            commands=_ONE_MACHINE,
            help="Attention kernel: sdpa, flash, efficient, cudnn, xformers, flash3. auto: measured on a GPU.",
            recorded=True,
        ),
    )
    kernels: str = field(
        default="auto",
        metadata=_option(
            "kernels",
            commands=_ONE_MACHINE,
            help="Our GPU kernels: names with commas, or none. auto: those measured to be faster.",
            recorded=True,
        ),
    )
    reuse_every: int = field(
        default=1,
        metadata=_option(
            "reuse_every",
            int,
            commands=_ONE_MACHINE,
            help="Denoiser calls that share deep features; above 1 costs quality.",
            minimum=1,
            recorded=True,
        ),
    )
    decode_chunk_plan: ChunkPlan = field(
        default="even",
        metadata=_option(
            "decode_chunk_plan",
            commands=_EVERYWHERE,
            help="How frames are split for decoding. even: 14 by 8 are 7+7; diffusers: 8+6, as its pipeline does.",
            choices=CHUNK_PLANS,
            recorded=True,
        ),
    )
    guidance_interval: tuple[float, float] | None = field(
        default=None,
        metadata=_option(
            "guidance_interval",
            _interval,
            commands=_ONE_MACHINE,
            help="Noise levels at which to guide; elsewhere a call is half. Costs quality.",
            metavar="LOW HIGH",
            recorded=True,
        ),
    )
    fp8: bool = field(
        default=False,
        metadata=_option(
            "fp8",
            _boolean,
            commands=_ONE_MACHINE,
            help="8-bit floats in the denoiser's large products, with --dtype bfloat16; costs quality.",
            recorded=True,
        ),
    )
    vram_budget_gib: float | None = field(
        default=None,
        metadata=_option(
            "vram_budget",
            float,
            commands=(*_ONE_MACHINE, "check"),
            help="GiB of GPU memory to stay within, by a computed plan. [all there is]",
            minimum=0.1,
            recorded=True,
        ),
    )
    cfg_parallel: str | None = field(
        default=None,
        metadata=_option(
            "cfg_parallel",
            commands=_ONE_MACHINE,
            help="A second GPU, for the other half of guided calls: cuda:1. Half the time of a step.",
            metavar="DEVICE",
            recorded=True,
        ),
    )
    max_batch: int | None = field(
        default=None,
        metadata=_option(
            "max_batch",
            int,
            commands=("serve",),
            help="Clips in one denoiser call, at most; a guided request is two. [what pays, measured]",
            minimum=1,
        ),
    )
    max_rows: int = field(default=16, metadata=_option("max_rows", int))
    mux_threads: int = field(default=1, metadata=_option("mux_threads", int))
    warm_up: bool = field(default=True, metadata=_option("warm_up", _boolean))
    checkpoint_every_s: float | None = field(default=5.0, metadata=_option("checkpoint_every_s", _seconds))

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            InvalidRequest: a count below 1, a negative time, an empty interval, reuse in deterministic mode or on two
                devices, 8-bit floats beside another dtype than bfloat16, or a name that no device has.
        """
        if _DEVICE.fullmatch(self.device) is None:
            raise InvalidRequest(
                f"a device is auto, cpu, cuda, cuda:1, xpu, xpu:1 or npu, not {self.device!r}", param="device"
            )
        if self.cfg_parallel is not None:
            self._check_cfg_parallel()
        for name in ("max_rows", "max_batch", "mux_threads", "threads", "reuse_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(f"{name} must be at least 1, not {value}", param=name)
        if self.checkpoint_every_s is not None and self.checkpoint_every_s < 0:
            raise InvalidRequest("checkpoint_every_s must be 0 or more", param="checkpoint_every_s")
        if self.decode_chunk_plan not in CHUNK_PLANS:
            plans = " or ".join(CHUNK_PLANS)
            raise InvalidRequest(
                f"decode_chunk_plan is {plans}, not {self.decode_chunk_plan!r}", param="decode_chunk_plan"
            )
        if self.reuse_every > 1 and self.deterministic:
            raise InvalidRequest(
                "reused features are not stored, so an interrupted video would differ; reuse them without "
                "--deterministic",
                param="reuse_every",
            )
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            raise InvalidRequest("a guidance interval is two noise levels, 0 <= LOW < HIGH", param="guidance_interval")
        if self.fp8:
            self._check_fp8()
        if self.vram_budget_gib is not None and self.vram_budget_gib <= 0:
            raise InvalidRequest("a budget of GPU memory must be above 0", param="vram_budget")

    def _check_fp8(self) -> None:
        if self.dtype != "bfloat16":
            raise InvalidRequest("--fp8 multiplies what is in bfloat16: add --dtype bfloat16", param="fp8")
        if self.vram_budget_gib is not None:
            raise InvalidRequest(
                "a budget of memory is for weights in one dtype; leave --vram-budget or --fp8 out", param="fp8"
            )

    def _check_cfg_parallel(self) -> None:
        if self.cfg_parallel is None or _TORCH_DEVICE.fullmatch(self.cfg_parallel) is None:
            raise InvalidRequest(
                f"the second device is cuda:1 or another, not {self.cfg_parallel!r}", param="cfg_parallel"
            )
        if self.reuse_every > 1:
            raise InvalidRequest(
                "reused features stay on one device; leave --reuse-every or --cfg-parallel out", param="cfg_parallel"
            )
        if self.vram_budget_gib is not None:
            raise InvalidRequest(
                "a budget of memory is for one device; leave --vram-budget or --cfg-parallel out", param="cfg_parallel"
            )

    def as_manifest(self) -> dict[str, Any]:
        """What a video's manifest says of them, as JSON-ready values: the settings the pixels may depend on."""
        values = {name: getattr(self, name) for name, option in engine_options() if option.recorded}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> EngineSettings:
        """The settings that a manifest records; what an earlier version did not record had its default.

        Raises:
            KeyError, TypeError, ValueError: the manifest is incomplete, or a value is of the wrong type.
            InvalidRequest: a value is out of range.
        """
        recorded = [(name, option) for name, option in engine_options() if option.recorded]
        values = {name: manifest[name] for name, option in recorded if option.required or name in manifest}
        if values.get("guidance_interval") is not None:
            low, high = values["guidance_interval"]
            values["guidance_interval"] = (float(low), float(high))
        return cls(**values)

    @property
    def cores(self) -> int:
        """CPU threads at work at once."""
        return self.threads or usable_cores()

    @property
    def fixed_threads(self) -> int:
        """Threads of every operation in deterministic mode, since their number changes the last bits."""
        return max(1, self.cores // 2)


def engine_options() -> tuple[tuple[str, EngineOption], ...]:
    """The name of each setting with its option, in order."""
    return tuple((one.name, one.metadata[_KEY]) for one in fields(EngineSettings))


def usable_cores() -> int:
    """Processors this process may run on, or as many as OMP_NUM_THREADS says."""
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdecimal() and int(requested) > 0:
        return int(requested)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

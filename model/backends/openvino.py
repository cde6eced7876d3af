"""The OpenVINO backend: exported graphs on Intel's and AMD's CPUs, Intel's GPUs and Intel's NPUs.

Graphs compute in float32 whatever the processor would prefer: with bfloat16 as its hint, a processor that has it gave
answers wrong by 140% of their largest value (AMD Zen 5, OpenVINO 2026.4), so the hint is not left to the plugin.

Batch-invariant, as the torch backend is on a CPU: every slot of a denoiser call is an inference of its own, and two run
side by side, each on half of the cores; so the number of threads of a slot never depends on the batch.

Legend: B batch slots, T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

import importlib.util
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from model.denoiser import CpuThreads, DenoiserInputs
from model.errors import CheckpointError, InvalidRequest, MissingExtra
from model.sources.layout import cache_folder

CPU: Final = "CPU"
MAX_COMPILED: Final = 2
"""Sizes for which a GPU or an NPU, which compile for one size, keep the compiled graph."""
_INTEL: Final = re.compile(r"xpu(?::(\d+))?|npu")
_DTYPES: Final = {"f32": torch.float32, "f16": torch.float16, "i64": torch.int64}
"""OpenVINO's name of an element type -> torch's."""

Shapes = tuple[tuple[int, ...], ...]


def openvino_device(name: str) -> str:
    """OpenVINO's name of a device: `GPU` for xpu, `GPU.1` for xpu:1, `NPU` for npu, else `CPU`."""
    if name == "npu":
        return "NPU"
    match = _INTEL.fullmatch(name)
    if match is None:
        return CPU
    return "GPU" if match[1] is None else f"GPU.{match[1]}"


class OpenVinoGraph:
    """One ONNX file, ready to run, with its only output as its answer.

    Args:
        file: the graph; its weights may lie beside it.
        device: OpenVINO's name of one: `CPU`, `GPU`, `GPU.1`, `NPU`.
        cores: of the CPU.
        one_slot: fix the first axis of every input to 1; several calls are then run side by side (`run_each`).

    Raises:
        MissingExtra: openvino is not installed.
        InvalidRequest: OpenVINO sees no such device here.
        CheckpointError: the file does not load.
    """

    def __init__(self, file: Path, device: str, cores: CpuThreads, *, one_slot: bool = False) -> None:
        self.file = file
        self._device = device
        self._streams = max(1, cores.count // cores.half) if one_slot else 1
        self._core, self._network = _read(file, device)
        self._properties = _properties(device, cores, self._streams)
        ports = {port.get_any_name(): port for port in self._network.inputs}
        self.shapes = {name: _axes(port) for name, port in ports.items()}
        """Of each input: a number where the size is fixed, else None."""
        if one_slot:
            self._network.reshape({name: [1, *_partial(axes[1:])] for name, axes in self.shapes.items()})
        self._inputs = {name: _dtype(port, file) for name, port in ports.items()}
        self.dtype = _dtype(self._network.outputs[0], file)
        """Of the output, which is that of the weights."""
        self._compiled: OrderedDict[Shapes, list[Any]] = OrderedDict()

    def run(self, inputs: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """The output, of `shape`, on the CPU and in the graph's dtype.

        Args:
            inputs: by name, cast to the graph's dtypes; what the graph does not have is left out if it holds no number.

        Raises:
            InvalidRequest: the graph was exported for another size.
        """
        (output,) = self.run_each([inputs], shape)
        return output

    def run_each(self, calls: Sequence[Mapping[str, Tensor]], shape: Sequence[int]) -> list[Tensor]:
        """The outputs of several calls of one size, each of `shape`; as many run side by side as there are streams.

        Raises:
            InvalidRequest: the graph was exported for another size.
        """
        import numpy as np
        import openvino

        prepared = [self._prepared(call) for call in calls]
        requests = self._requests(tuple(tuple(value.shape) for value in prepared[0].values()))
        outputs = [torch.empty(tuple(shape), dtype=self.dtype) for _ in prepared]
        for first in range(0, len(prepared), len(requests)):
            group = list(zip(requests, prepared[first:], outputs[first:], strict=False))
            for request, values, output in group:
                for name, value in values.items():
                    request.set_tensor(name, openvino.Tensor(value.numpy(), shared_memory=True))
                request.set_output_tensor(openvino.Tensor(np.asarray(output), shared_memory=True))
                request.start_async()
            for request, _, _ in group:
                request.wait()
        return outputs

    def _prepared(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The graph's inputs, contiguous on the CPU, in the order of the graph."""
        for name, value in inputs.items():
            if name not in self._inputs and value.numel():
                raise InvalidRequest(f"{self.file.name} has no input {name!r}: it was exported for another task")
        return {name: self._checked(name, inputs[name]) for name in self._inputs}

    def _checked(self, name: str, value: Tensor) -> Tensor:
        axes = self.shapes[name]
        sizes = list(zip(axes, value.shape, strict=False))
        if len(axes) != value.ndim or not all(axis is None or axis == size for axis, size in sizes):
            raise InvalidRequest(
                f"{self.file.name} takes {name} of {axes}, not {tuple(value.shape)}; export it for that size, "
                "or serve the checkpoint with --denoiser torch"
            )
        return value.detach().to("cpu", self._inputs[name]).contiguous()

    def _requests(self, shapes: Shapes) -> list[Any]:
        """Inference requests for inputs of these shapes, one a stream.

        A CPU takes every size with one compiled graph; the others compile for each.
        """
        key = () if self._device == CPU else shapes
        if key not in self._compiled:
            while len(self._compiled) >= MAX_COMPILED:
                self._compiled.popitem(last=False)
            network = self._network
            if key:
                network = network.clone()
                network.reshape({name: list(shape) for name, shape in zip(self._inputs, shapes, strict=True)})
            try:
                compiled = self._core.compile_model(network, self._device, self._properties)
            except RuntimeError as error:
                raise CheckpointError(
                    f"OpenVINO does not compile {self.file.name} for {self._device}: {_last_line(error)}",
                    param="device",
                ) from error
            self._compiled[key] = [compiled.create_infer_request() for _ in range(self._streams)]
        self._compiled.move_to_end(key)
        return self._compiled[key]


class OpenVinoDenoiser:
    """A Denoiser (model.denoiser) around an exported UNet; every slot is an inference of its own."""

    def __init__(self, file: Path, device: str, cores: CpuThreads) -> None:
        self._graph = OpenVinoGraph(file, device, cores, one_slot=True)

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser. Batch-invariant, pinned or not."""
        slots = inputs.split(1)
        outputs = self._graph.run_each([slot.as_dict() for slot in slots], slots[0].latents.shape)
        return torch.cat(outputs).to(inputs.latents.device, torch.float32)


def require_openvino() -> None:
    """Raise MissingExtra unless openvino is installed."""
    if importlib.util.find_spec("openvino") is None:
        raise MissingExtra("the openvino backend", "openvino")


def _read(file: Path, device: str) -> tuple[Any, Any]:
    """OpenVINO's core and the network of the file."""
    require_openvino()
    import openvino

    core = openvino.Core()
    available = core.available_devices
    alike = {name.removesuffix(".0") for name in available}
    if device.removesuffix(".0") not in alike and not any(name.startswith(f"{device}.") for name in available):
        raise InvalidRequest(
            f"OpenVINO sees no {device} here, only {', '.join(available)}: install Intel's driver for it, or take "
            "--device cpu",
            param="device",
        )
    try:
        return core, core.read_model(file)
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not load in OpenVINO: {_last_line(error)}", param="model") from error


def _properties(device: str, cores: CpuThreads, streams: int) -> dict[str, Any]:
    properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if device == CPU:
        # A stream's threads are not bound to cores: other lanes and other processes use these too.
        threads = cores.half * streams if streams > 1 else cores.count
        properties |= {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    elif device != "NPU":
        properties["NUM_STREAMS"] = streams
    try:
        folder = cache_folder() / "openvino"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # compiled anew at each start
        return properties
    return properties | {"CACHE_DIR": str(folder)}


def _axes(port: Any) -> tuple[int | None, ...]:
    return tuple(None if axis.is_dynamic else axis.get_length() for axis in port.partial_shape)


def _partial(axes: Sequence[int | None]) -> list[int]:
    """The axes as OpenVINO writes them: -1 where one is free."""
    return [-1 if axis is None else axis for axis in axes]


def _dtype(port: Any, file: Path) -> torch.dtype:
    name = port.element_type.get_type_name()
    if name not in _DTYPES:
        raise CheckpointError(f"{file} has an input or output of the dtype {name}, which this backend does not feed")
    return _DTYPES[name]


def _last_line(error: Exception) -> str:
    """OpenVINO's errors carry its source files; what went wrong is said last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

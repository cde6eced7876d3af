"""The TensorRT backend: an exported folder's denoiser engine on the GPU it was compiled for.

Inputs are copied on the device into buffers whose addresses the engine knows, so nothing passes through the host; for
each batch size the launches are captured once as a CUDA graph and replayed. Engines of one device work in turn, so
they share one block of scratch memory, as large as the hungriest needs.

Legend: B batch slots, T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.backends.cuda_graph import Recording
from model.denoiser import DenoiserInputs
from model.errors import CheckpointError, MissingExtra
from model.export_manifest import ENGINE_FOLDER, ONNX_FOLDER, EngineBuild, check_engine, read_manifest


class Scratch:
    """A device's scratch memory, shared by the engines that work there one after another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._block = torch.empty(0, dtype=torch.uint8, device=device)

    def at_least(self, size: int) -> Tensor:
        """At least `size` bytes. An engine that captured a graph over an older block keeps that block alive."""
        if self._block.numel() < size:
            self._block = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._block


@dataclass(frozen=True, slots=True)
class Captured:
    """A CUDA graph of one call, its execution context, the buffers it reads and writes, and the scratch it works in."""

    graph: Recording
    context: Any
    inputs: dict[str, Tensor]
    output: Tensor
    scratch: Tensor


class TensorRtDenoiser:
    """A Denoiser (model.denoiser) around the engine of an exported folder.

    Args:
        folder: a version of a model repository, with engines.
        device: a CUDA device.
        scratch: shared with other engines of the device, if there are any.

    Raises:
        CheckpointError: the folder has no engine, or one of another GPU, builder or version (its manifest says).
        MissingExtra: the builder's runtime is not installed.
    """

    def __init__(self, folder: Path, device: torch.device, scratch: Scratch | None = None) -> None:
        trt = fitting_runtime(folder, device)
        self._device = device
        self._scratch = scratch or Scratch(device)
        with _on(device):
            self._engine = _deserialised(trt, folder)
        self._unallocated = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self._output,) = set(names) - set(self._inputs)
        dtypes = {trt.float32: torch.float32, trt.float16: torch.float16, trt.bfloat16: torch.bfloat16}
        self._dtypes = {name: dtypes[self._engine.get_tensor_dtype(name)] for name in names}
        self._max_batch_size = int(self._engine.get_tensor_profile_shape("timestep", 0)[2][0])
        self._captured: dict[int, Captured] = {}

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser. A batch larger than the engine was compiled for is split into several calls."""
        with _on(self._device):
            return torch.cat([self._run(group.as_dict()) for group in inputs.split(self._max_batch_size)])

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        batch_size = len(inputs["latents"])
        if batch_size not in self._captured:
            self._captured[batch_size] = self._capture(inputs)
        captured = self._captured[batch_size]
        for name, buffer in captured.inputs.items():
            buffer.copy_(inputs[name])
        captured.graph.replay()
        return captured.output.float()

    def _capture(self, inputs: dict[str, Tensor]) -> Captured:
        """Record a call of this batch size; a call before it lets TensorRT set up what a capture must not.

        The execution context is this recording's own: a graph holds addresses in its context, which a context that
        went on to another shape would no longer hold.
        """
        context = self._engine.create_execution_context(self._unallocated)
        buffers = {name: inputs[name].to(self._dtypes[name], copy=True).contiguous() for name in self._inputs}
        output = torch.empty_like(inputs["latents"], dtype=self._dtypes[self._output])
        for name, buffer in buffers.items():
            if not context.set_input_shape(name, tuple(buffer.shape)):
                raise CheckpointError(
                    f"the engine does not take {name} of {tuple(buffer.shape)}; export it for that size"
                )
            context.set_tensor_address(name, buffer.data_ptr())
        context.set_tensor_address(self._output, output.data_ptr())
        scratch = self._scratch.at_least(int(self._engine.device_memory_size_v2))
        context.set_device_memory(scratch.data_ptr(), scratch.numel())
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # The decode lane allocates meanwhile: only this thread's forbidden calls are to end the recording.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            context.execute_async_v3(stream.cuda_stream)
        return Captured(graph, context, buffers, output, scratch)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """The device made current, which TensorRT and a capture go by; nothing on a CPU, where no engine runs anyway."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def fitting_runtime(folder: Path, device: torch.device) -> Any:
    """The runtime's Python module, once the folder's manifest says that its engines run on this device.

    Raises:
        CheckpointError: they do not, or there are none.
        MissingExtra: the runtime is not installed.
    """
    built = read_manifest(folder).built
    if built is None:
        raise CheckpointError(f"{folder} holds graphs and no engines: export with --backend tensorrt or tensorrt-rtx")
    trt = _runtime(built)
    capability = None
    if device.type == "cuda" and torch.cuda.is_available():
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    check_engine(built, built.builder, str(trt.__version__), capability)
    return trt


def _runtime(built: EngineBuild) -> Any:
    try:
        return importlib.import_module(built.builder)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"running an engine of {built.builder}", built.builder.replace("_", "-")) from error


def _deserialised(trt: Any, folder: Path) -> Any:
    """The denoiser's engine, with its weights put in where it was stripped of them."""
    file, log = folder / ENGINE_FOLDER / "unet.engine", trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(log).deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise CheckpointError(f"{file} does not load; export it again on this machine", code="wrong_engine")
    built = read_manifest(folder).built
    if built is not None and built.stripped:
        refitter = trt.Refitter(engine, log)
        graph = folder / ONNX_FOLDER / "unet.onnx"
        if not trt.OnnxParserRefitter(refitter, log).refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
            raise CheckpointError(
                f"{graph} has not the weights that {file} lacks; export it again", code="wrong_engine"
            )
    return engine

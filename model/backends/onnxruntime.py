"""The onnxruntime backend: exported graphs on the CPU or a CUDA device, through I/O binding.

Inputs and outputs are bound where they lie, so nothing is copied through the host on a GPU.

Legend: B batch slots, T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.denoiser import CpuThreads, DenoiserInputs
from model.errors import CheckpointError, InvalidRequest, MissingExtra

_ELEMENTS: dict[str, tuple[torch.dtype, int]] = {
    "tensor(float)": (torch.float32, 1),
    "tensor(int64)": (torch.int64, 7),
    "tensor(float16)": (torch.float16, 10),
    "tensor(bfloat16)": (torch.bfloat16, 16),
}
"""onnxruntime's name of a dtype -> torch's, and the number ONNX gives it (TensorProto.DataType)."""


class OnnxGraph:
    """One ONNX file, ready to run, with the first of its outputs as its answer.

    Args:
        file: the graph; its weights may lie beside it.
        device: `cpu` or a CUDA device.
        cores: of the CPU.

    Raises:
        MissingExtra: onnxruntime is not installed.
        InvalidRequest: a CUDA device, and an onnxruntime without one.
        CheckpointError: the file does not load.
    """

    def __init__(self, file: Path, device: torch.device, cores: CpuThreads) -> None:
        self.file = file
        self.device = device
        self._session = _open(file, device, cores)
        self._inputs = {port.name: _element(port.type, file) for port in self._session.get_inputs()}
        (port,) = self._session.get_outputs()
        self._output = (port.name, *_element(port.type, file))
        self.shapes = {port.name: tuple(port.shape) for port in self._session.get_inputs()}
        """Of each input: a number where the size is fixed, else a name."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the output, which is that of the weights."""
        return self._output[1]

    def run(self, inputs: dict[str, Tensor], shape: Sequence[int]) -> Tensor:
        """The output, of `shape`, on the graph's device and in its dtype.

        Args:
            inputs: by name, cast to the graph's dtypes; what the graph does not have is left out if it holds no number.

        Raises:
            InvalidRequest: the graph was exported for another size.
        """
        binding = self._session.io_binding()
        bound = [self._bind(binding, name, value) for name, value in inputs.items() if self._takes(name, value)]
        name, dtype, element = self._output
        output = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        binding.bind_output(name, self.device.type, self.device.index or 0, element, list(shape), output.data_ptr())
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        del bound  # the tensors had to live until here
        return output

    def _takes(self, name: str, value: Tensor) -> bool:
        if name not in self._inputs:
            if value.numel():
                raise InvalidRequest(f"{self.file.name} has no input {name!r}: it was exported for another task")
            return False
        fixed = self.shapes[name]
        sizes = list(zip(fixed, value.shape, strict=False))
        if len(fixed) != value.ndim or not all(isinstance(axis, str) or axis == size for axis, size in sizes):
            raise InvalidRequest(
                f"{self.file.name} takes {name} of {fixed}, not {tuple(value.shape)}; export it for that size, "
                "or serve the checkpoint with --denoiser torch"
            )
        return True

    def _bind(self, binding: Any, name: str, value: Tensor) -> Tensor:
        dtype, element = self._inputs[name]
        tensor = value.to(self.device, dtype).contiguous()
        index = self.device.index or 0
        binding.bind_input(name, self.device.type, index, element, list(tensor.shape), tensor.data_ptr())
        return tensor


class OnnxDenoiser:
    """A Denoiser (model.denoiser) around an exported UNet."""

    def __init__(self, file: Path, device: torch.device, cores: CpuThreads) -> None:
        self._pool: ThreadPoolExecutor | None = None
        if cores.pinned:
            self._pool = ThreadPoolExecutor(cores.count, "stillmotion-onnx")
            cores = CpuThreads(1, pinned=True)
        self._graph = OnnxGraph(file, device, cores)

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser. Batch-invariant where pinned: each slot is a call of its own on one thread."""
        if self._pool is None:
            return self._run(inputs)
        return torch.cat(list(self._pool.map(self._run, inputs.split(1))))

    def _run(self, inputs: DenoiserInputs) -> Tensor:
        output = self._graph.run(inputs.as_dict(), inputs.latents.shape)
        return output.to(inputs.latents.device, torch.float32)


def _open(file: Path, device: torch.device, cores: CpuThreads) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtra("the onnxruntime backend", "export") from error
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise InvalidRequest(
                "this onnxruntime has no CUDA provider: pip install onnxruntime-gpu in its place, or take --device cpu",
                param="device",
            )
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores.count
    options.log_severity_level = 3  # errors; which nodes run where is no news
    # Its arena grows by powers of two and gives nothing back: a process would stay at several times its largest call.
    options.enable_cpu_mem_arena = False
    try:
        return onnxruntime.InferenceSession(file, options, providers=providers)
    except Exception as error:  # onnxruntime has an error class for each status, under one private module
        raise CheckpointError(f"{file} does not load in onnxruntime: {error}", param="model") from error


def _element(name: str, file: Path) -> tuple[torch.dtype, int]:
    if name not in _ELEMENTS:
        raise CheckpointError(f"{file} has an input or output of the dtype {name}, which no backend feeds")
    return _ELEMENTS[name]

"""CUDA graphs around a denoiser: one capture for each shape of call, replayed without Python launching its kernels.

A capture holds its memory for good, so only the shapes used last are kept (LRU), and all share one memory pool: they
run one after another, and the answer of each is copied before the next. Replaying gives the bits of the recorded
kernels. Recording is behind a small protocol, so that the bookkeeping is tested without a GPU.

Legend: B batch slots, T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from model.denoiser import Denoiser, DenoiserInputs
from model.errors import InvalidRequest

MAX_GRAPHS = 4
"""Recordings at once: a guided and an unguided call, each at two sizes."""
WARM_UPS = 3
"""Calls before a recording, in which libraries choose their kernels and the compiler compiles."""

Shapes = tuple[tuple[int, ...], ...]


@runtime_checkable
class Recording(Protocol):
    """A call that can be made again on other numbers."""

    def replay(self) -> None:
        """Run the recorded kernels on what the recorded inputs hold now."""
        ...


@runtime_checkable
class Recorder(Protocol):
    """Makes recordings."""

    def record(self, call: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
        """A recording of the call, and the tensor into which it and every replay write."""
        ...


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory, on one device."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise InvalidRequest("CUDA graphs need an NVIDIA GPU; choose --denoiser torch-compiled", param="backend")
        self._device = device
        self._pool: Any = None  # torch has a private type for it

    def record(self, call: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
        """See Recorder. Warms up on a stream of its own, as recording demands."""
        # torch.cuda.graph captures on a stream of the current device, so this one must be current.
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    call()
            torch.cuda.current_stream(self._device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # The decode lane uses the device meanwhile: only this thread's forbidden calls are to end the recording.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                output = call()
        return DeviceGraph(graph, self._device), output


class DeviceGraph:
    """A Recording: a CUDA graph that is replayed on the current stream of its own device."""

    def __init__(self, graph: Recording, device: torch.device) -> None:
        self._graph = graph
        self._device = device

    def replay(self) -> None:
        """See Recording."""
        with torch.cuda.device(self._device):
            self._graph.replay()


class CudaGraphDenoiser:
    """A Denoiser (model.denoiser) around another, whose calls are recorded and replayed. Of one thread."""

    def __init__(self, inner: Denoiser, recorder: Recorder, max_graphs: int = MAX_GRAPHS) -> None:
        self._inner = inner
        self._recorder = recorder
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[Shapes, tuple[Recording, DenoiserInputs, Tensor]] = OrderedDict()

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser. The answer is a copy: the next replay writes over the recorded one."""
        shapes = tuple(tuple(part.shape) for part in inputs.as_tuple())
        with torch.inference_mode():
            if shapes not in self._graphs:
                self._record(shapes, inputs)
            self._graphs.move_to_end(shapes)
            recording, static_inputs, output = self._graphs[shapes]
            for static, part in zip(static_inputs.as_tuple(), inputs.as_tuple(), strict=True):
                static.copy_(part, non_blocking=True)
            recording.replay()
            return output.clone()

    @property
    def recorded(self) -> tuple[Shapes, ...]:
        """The shapes with a recording, the one used last at the end."""
        return tuple(self._graphs)

    def _record(self, shapes: Shapes, inputs: DenoiserInputs) -> None:
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        static_inputs = inputs.map(torch.clone)
        recording, output = self._recorder.record(lambda: self._inner(static_inputs))
        self._graphs[shapes] = (recording, static_inputs, output)

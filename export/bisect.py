"""Where an exported graph begins to differ from its network: bisection over the network's layers.

The exporter notes on every node which modules it came from, so a module's output is known in both: in torch by a hook,
in the graph by the last node of that module, made an output of a copy. The layers are put in the order in which torch
runs them; a difference once there is carried on, so log2(layers) runs find the first that shows it.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backends.onnxruntime import OnnxGraph
from model.denoiser import CpuThreads
from model.optimized.rewrites import relative_difference

SCOPES = "pkg.torch.onnx.name_scopes"
"""The key under which the exporter notes a node's modules, outermost first, and its own name last."""


def first_difference(module: nn.Module, file: Path, inputs: Mapping[str, Tensor], tolerance: float) -> str:
    """In words: `at LAYER, after LAYER`, or that no layer shows it.

    Args:
        inputs: of the module's forward(), by name.
        tolerance: largest difference over largest magnitude that does not count.
    """
    import onnx

    graph = onnx.load(file, load_external_data=False)
    expected = _outputs_in_order(module, inputs)
    values = _values_of(graph)
    layers = [name for name in expected if name in values]

    def differs(layer: str) -> bool:
        actual = _run_until(graph, file, values[layer], inputs, expected[layer])
        return actual is not None and not relative_difference(actual.float(), expected[layer].float()) <= tolerance

    low, high = 0, len(layers)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if differs(layers[middle]) else (middle + 1, high)
    if low == len(layers):
        return f"after the last layer that can be compared ({layers[-1]})" if layers else "in no layer that can be told"
    return f"at {layers[low]}" + (f", after {layers[low - 1]}" if low else "")


def _outputs_in_order(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every submodule's output, where it is one tensor, in the order in which they finish."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.detach().clone()

        return hook

    hooks = [child.register_forward_hook(keep(name)) for name, child in module.named_modules() if name]
    try:
        with torch.inference_mode():
            module(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _values_of(graph: Any) -> dict[str, str]:
    """Of each module with nodes of its own: the name of its last node's first output."""
    values: dict[str, str] = {}
    for node in graph.graph.node:
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        if SCOPES in metadata:
            for scope in ast.literal_eval(metadata[SCOPES])[:-1]:
                values[scope] = node.output[0]
    values.pop("", None)
    return values


def _run_until(graph: Any, file: Path, value: str, inputs: Mapping[str, Tensor], like: Tensor) -> Tensor | None:
    """One inner value of the graph; None where its shape is not the module's (the exporter merged or moved nodes)."""
    import onnx
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, RuntimeException

    from model.errors import CheckpointError

    cut = onnx.ModelProto()
    cut.CopyFrom(graph)
    del cut.graph.output[:]
    element = onnx.helper.np_dtype_to_tensor_dtype(like.numpy().dtype) if like.dtype != torch.bfloat16 else 16
    cut.graph.output.append(onnx.helper.make_tensor_value_info(value, element, None))
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".onnx") as part:  # beside it: weights are found by path
        onnx.save(cut, part.name)
        try:
            session = OnnxGraph(Path(part.name), torch.device("cpu"), CpuThreads(torch.get_num_threads()))
            return session.run(dict(inputs), like.shape)
        except (CheckpointError, Fail, InvalidGraph, RuntimeException):
            return None

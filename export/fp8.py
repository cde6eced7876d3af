"""FP8 by Q/DQ: a denoiser's graph whose large matrix products and convolutions read 8-bit floats (E4M3).

Weights are rounded with one scale an output channel, activations with one scale a tensor: the largest magnitude on the
calibration inputs over 448, the largest number E4M3 holds. The graph says so with QuantizeLinear and DequantizeLinear
pairs, which TensorRT turns into FP8 kernels on GPUs that have them (compute capability 8.9 and later) and onnxruntime
computes as they stand, so that the parity gate measures the very rounding the GPU will make.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.backends.onnx_export import EXTERNAL_OVER
from model.backends.onnxruntime import OnnxGraph
from model.denoiser import CpuThreads

LARGEST = 448.0
"""Of E4M3 without infinities."""
OPERATORS = ("Conv", "MatMul", "Gemm")
LEAST_WEIGHTS = 1024
"""Smaller layers (embeddings of single numbers, blends) gain nothing and lose precision."""
FULL_PRECISION = ("conv_in", "conv_out")
"""Layers that are not quantized: their rounding errors are visible in the output."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One node to quantize: its index in the graph, its activation and weight by name, the weight's channel axis."""

    index: int
    activation: str
    weight: str
    axis: int


def quantize(file: Path, inputs: Sequence[Mapping[str, Tensor]], target: Path) -> int:
    """Write the graph with FP8 layers to `target` (which may be `file`); how many layers were quantized.

    Args:
        inputs: of the graph, by name, for calibration: real requests at the noise levels that sampling uses.
    """
    import onnx

    graph = onnx.load(file)
    layers = list(_layers(graph.graph))
    largest = _calibrate(graph, file, sorted({layer.activation for layer in layers}), inputs)
    usable = [layer for layer in layers if largest[layer.activation] > 0]
    _rewrite(graph.graph, usable, largest)
    large = graph.ByteSize() > EXTERNAL_OVER
    target.with_name(target.name + ".data").unlink(missing_ok=True)
    onnx.save(graph, target, save_as_external_data=large, location=f"{target.name}.data" if large else None)
    return len(usable)


def _layers(graph: Any) -> Iterator[Layer]:
    """Nodes that multiply an activation by a large constant weight."""
    weights = {value.name: tuple(value.dims) for value in graph.initializer}
    for index, node in enumerate(graph.node):
        if node.op_type not in OPERATORS or node.input[1] not in weights or node.input[0] in weights:
            continue
        shape = weights[node.input[1]]
        if int(np.prod(shape)) < LEAST_WEIGHTS or any(part in node.input[1] for part in FULL_PRECISION):
            continue
        yield Layer(index, node.input[0], node.input[1], _channel_axis(node, len(shape)))


def _channel_axis(node: Any, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return rank - 2 if transposed else rank - 1


def _calibrate(
    graph: Any, file: Path, names: Sequence[str], inputs: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """The largest magnitude of each activation; the graph itself reduces them, so that only numbers come out."""
    import onnx
    from onnx import TensorProto, helper

    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    del probe.graph.output[:]
    for number, name in enumerate(names):
        probe.graph.node.append(helper.make_node("Abs", [name], [f"fp8_abs_{number}"]))
        probe.graph.node.append(helper.make_node("ReduceMax", [f"fp8_abs_{number}"], [f"fp8_max_{number}"], keepdims=0))
        probe.graph.node.append(
            helper.make_node("Cast", [f"fp8_max_{number}"], [f"fp8_float_{number}"], to=TensorProto.FLOAT)
        )
        probe.graph.node.append(helper.make_node("Unsqueeze", [f"fp8_float_{number}", "fp8_axis"], [f"fp8_{number}"]))
    joined = [f"fp8_{number}" for number in range(len(names))]
    probe.graph.initializer.append(helper.make_tensor("fp8_axis", TensorProto.INT64, [1], [0]))
    probe.graph.node.append(helper.make_node("Concat", joined, ["fp8_largest"], axis=0))
    probe.graph.output.append(helper.make_tensor_value_info("fp8_largest", TensorProto.FLOAT, [len(names)]))
    written = file.with_name(f"{file.stem}-calibration.onnx")
    data = written.with_name(written.name + ".data")
    try:
        large = probe.ByteSize() > EXTERNAL_OVER
        onnx.save(probe, written, save_as_external_data=large, location=data.name if large else None)
        session = OnnxGraph(written, torch.device("cpu"), CpuThreads(torch.get_num_threads()))
        maxima = torch.stack([session.run(dict(call), (len(names),)) for call in inputs])
    finally:
        written.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
    return dict(zip(names, maxima.amax(0).tolist(), strict=True))


def _rewrite(graph: Any, layers: Sequence[Layer], largest: Mapping[str, float]) -> None:
    """Put the pairs in: one for each activation, shared by all that read it; one DequantizeLinear a weight."""
    from onnx import helper, numpy_helper

    initializers = {value.name: value for value in graph.initializer}
    read: dict[str, str] = {}
    before: dict[int, list[Any]] = {}
    for layer in layers:
        node, weight = graph.node[layer.index], numpy_helper.to_array(initializers[layer.weight])
        added = before.setdefault(layer.index, [])
        if layer.activation not in read:
            stem = f"fp8_activation_{len(read)}"
            scale = np.asarray(largest[layer.activation] / LARGEST, weight.dtype)
            graph.initializer.extend((_initializer(scale, f"{stem}_scale"), _zeros((), f"{stem}_zero")))
            scale_and_zero = [f"{stem}_scale", f"{stem}_zero"]
            added.append(
                helper.make_node("QuantizeLinear", [layer.activation, *scale_and_zero], [f"{stem}_8"], name=f"{stem}_q")
            )
            added.append(
                helper.make_node("DequantizeLinear", [f"{stem}_8", *scale_and_zero], [stem], name=f"{stem}_dq")
            )
            read[layer.activation] = stem
        quantized = f"{layer.weight}_fp8"
        if quantized not in initializers:
            values, scales = round_weight(weight, layer.axis)
            initializers[quantized] = values
            values.name = quantized
            graph.initializer.extend(
                (values, _initializer(scales, f"{quantized}_scale"), _zeros(scales.shape, f"{quantized}_zero"))
            )
            operands = [quantized, f"{quantized}_scale", f"{quantized}_zero"]
            added.append(
                helper.make_node(
                    "DequantizeLinear", operands, [f"{quantized}_dq"], axis=layer.axis, name=f"{quantized}_n"
                )
            )
        node.input[0], node.input[1] = read[layer.activation], f"{quantized}_dq"
    nodes = list(graph.node)
    del graph.node[:]
    for index, node in enumerate(nodes):
        graph.node.extend((*before.get(index, ()), node))
    used = {name for node in graph.node for name in node.input}
    live = [value for value in graph.initializer if value.name in used]
    del graph.initializer[:]
    graph.initializer.extend(live)


def round_weight(weight: np.ndarray, axis: int) -> tuple[Any, np.ndarray]:
    """A weight as an E4M3 tensor, and its scale for each channel along `axis`."""
    from ml_dtypes import float8_e4m3fn
    from onnx import TensorProto, helper

    others = tuple(other for other in range(weight.ndim) if other != axis)
    largest = np.abs(weight).max(axis=others).astype(np.float32)
    scales = (np.where(largest > 0, largest, 1.0) / LARGEST).astype(weight.dtype)
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    scaled = weight.astype(np.float32) / scales.astype(np.float32).reshape(shape)
    rounded = scaled.clip(-LARGEST, LARGEST).astype(float8_e4m3fn)
    tensor = helper.make_tensor("", TensorProto.FLOAT8E4M3FN, weight.shape, rounded.tobytes(), raw=True)
    return tensor, scales


def _initializer(value: np.ndarray, name: str) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(value, name)


def _zeros(shape: tuple[int, ...], name: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, shape, bytes(int(np.prod(shape))), raw=True)

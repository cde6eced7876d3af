"""FP8 by Q/DQ: weights round as E4M3 does, the graph stays near torch, and TensorRT takes it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.fp8 import LARGEST, quantize, round_weight
from export.onnx import Component
from export.tensorrt import BuildOptions, compile_engine
from model.backends.onnx_export import Graph, Port, write_graph
from model.backends.onnxruntime import OnnxGraph
from model.denoiser import CpuThreads
from model.optimized.rewrites import relative_difference


class Small(nn.Module):
    """A convolution, a linear layer that reads what it makes, and a layer that is kept by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 32, 3, padding=1)
        self.second = nn.Linear(32, 64)
        self.conv_out = nn.Conv2d(64, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.silu(self.first(x)).movedim(1, -1)
        return self.conv_out(self.second(hidden).movedim(-1, 1))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, Path]:
    torch.manual_seed(0)
    graph = Graph(
        "small",
        (Port("x", "float32", ("batch", 8, 12, 16)),),
        (Port("y", "float32", ("batch", 32, 12, 16)),),
    )
    component = Component(Small().eval(), graph, {"batch": 2}, {"batch": 2})
    file = tmp_path_factory.mktemp("fp8") / "small.onnx"
    write_graph(component.module, graph, file, component.traced)
    return component, file


def given(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    return {"x": torch.randn(2, 8, 12, 16, generator=torch.Generator().manual_seed(seed)) * scale}


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_round_as_torch_s_own_float8(axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    weight[(slice(None),) * axis + (2,)] = 0
    tensor, scales = round_weight(weight, axis)
    shape = [-1 if place == axis else 1 for place in range(3)]
    stored = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.float8_e4m3fn).reshape(weight.shape)
    expected = torch.from_numpy(weight / scales.reshape(shape)).to(torch.float8_e4m3fn)
    assert torch.equal(stored.float(), expected.float())
    assert float(stored.float().abs().max()) == LARGEST
    assert np.abs(stored.float().numpy() * scales.reshape(shape) - weight).max() <= np.abs(weight).max() / 16


@pytest.mark.slow
def test_the_large_layers_are_quantized_and_the_answer_stays_near(
    small: tuple[Component, Path], tmp_path: Path
) -> None:
    import onnx

    component, file = small
    target = tmp_path / "small.onnx"
    assert quantize(file, [given(seed) for seed in range(4)], target) == 2
    nodes = [node.op_type for node in onnx.load(target).graph.node]
    assert nodes.count("QuantizeLinear") == 2
    assert nodes.count("DequantizeLinear") == 4
    with torch.inference_mode():
        expected = component.module(**given(9))
    actual = OnnxGraph(target, torch.device("cpu"), CpuThreads(1)).run(given(9), expected.shape)
    assert 1e-4 < relative_difference(actual, expected) < 0.1


def test_calibration_covers_what_it_saw(small: tuple[Component, Path], tmp_path: Path) -> None:
    component, file = small
    with torch.inference_mode():
        expected = component.module(**given(9, scale=30.0))
    differences = []
    for name, scale in (("narrow", 1.0), ("wide", 30.0)):
        target = tmp_path / f"{name}.onnx"
        quantize(file, [given(seed, scale) for seed in range(4)], target)
        actual = OnnxGraph(target, torch.device("cpu"), CpuThreads(1)).run(given(9, scale=30.0), expected.shape)
        differences.append(relative_difference(actual, expected))
    assert differences[1] < 0.1 < differences[0]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx")
def test_tensorrt_compiles_it(small: tuple[Component, Path], tmp_path: Path) -> None:
    component, file = small
    target, engine = tmp_path / "small.onnx", tmp_path / "small.engine"
    quantize(file, [given(0)], target)
    report = compile_engine("tensorrt_rtx", component, target, engine, BuildOptions(capabilities=("8.9",)))
    assert report.engine_bytes == engine.stat().st_size > 0

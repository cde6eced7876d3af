"""A graph that was tampered with: the gate refuses it, and bisection names the layer."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from export.bisect import first_difference
from export.onnx import Component
from export.parity import ParityError, Tolerance, check_components, torch_outputs
from model.backends.onnx_export import Graph, Port, write_graph

TOLERANCE = Tolerance(1e-5, 50.0)


class Chain(nn.Module):
    """Six layers, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) + x
        return x


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, Path]:
    torch.manual_seed(0)
    graph = Graph("chain", (Port("x", "float32", ("batch", 8)),), (Port("y", "float32", ("batch", 8)),))
    component = Component(Chain().eval(), graph, {"batch": 2}, {"batch": 4})
    file = tmp_path_factory.mktemp("chain") / "chain.onnx"
    write_graph(component.module, graph, file, component.traced)
    return component, file


def tampered(file: Path, layer: int, folder: Path) -> Path:
    """A copy of the graph in which one layer's bias is changed."""
    model = onnx.load(file)
    (bias,) = [value for value in model.graph.initializer if value.name.endswith(f"layers.{layer}.bias")]
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
    onnx.save(model, folder / file.name)
    return folder / file.name


@pytest.mark.slow
def test_an_equal_graph_passes(chain: tuple[Component, Path]) -> None:
    component, file = chain
    inputs = {"chain": [component.graph.example({"batch": size}) for size in (1, 3)]}
    measured = check_components([component], {"chain": file}, inputs, torch_outputs([component], inputs), TOLERANCE)
    assert [one.size for one in measured] == ["x 1x8", "x 3x8"]
    assert all(one.passed for one in measured)


@pytest.mark.parametrize("layer", [pytest.param(0, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_changed_layer_is_refused_and_named(chain: tuple[Component, Path], layer: int, tmp_path: Path) -> None:
    component, file = chain
    bad = tampered(file, layer, tmp_path)
    inputs = {"chain": [component.graph.example({"batch": 3})]}
    with pytest.raises(ParityError, match=rf"the difference starts at layers\.{layer}\b"):
        check_components([component], {"chain": bad}, inputs, torch_outputs([component], inputs), TOLERANCE)
    assert [path.name for path in tmp_path.iterdir()] == ["chain.onnx"]  # bisection's copies are gone


def test_answers_that_are_not_numbers_do_not_pass(chain: tuple[Component, Path], tmp_path: Path) -> None:
    component, file = chain
    inputs = {"chain": [{"x": torch.full((1, 8), float("nan"))}]}
    with pytest.raises(ParityError):
        check_components([component], {"chain": file}, inputs, torch_outputs([component], inputs), TOLERANCE)


def test_without_a_difference_no_layer_is_named(chain: tuple[Component, Path]) -> None:
    component, file = chain
    told = first_difference(component.module, file, component.graph.example({"batch": 3}), 1e-5)
    assert told.startswith("after the last layer")

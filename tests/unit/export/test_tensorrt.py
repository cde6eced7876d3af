"""Engines: compiled ahead of time without a GPU where tensorrt_rtx is installed, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.onnx import Component
from export.tensorrt import BuildFailed, BuildOptions, built_by, check_options, compile_engine, load_builder, profile_of
from model.backends.onnx_export import Graph, Port, write_graph
from model.errors import InvalidRequest, MissingExtra

rtx = pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt_rtx is not installed")


class Small(nn.Module):
    """A convolution and attention over what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        told = self.conv(x).flatten(2).mT[:, None]  # one head
        return nn.functional.scaled_dot_product_attention(told, told, told)[:, 0] * scale[:, None, None]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, Path]:
    inputs = (Port("x", "float32", ("batch", 3, "height", 8)), Port("scale", "float32", ("batch",)))
    graph = Graph("small", inputs, (Port("y", "float32", ("batch", "area", 8)),))
    component = Component(Small().eval(), graph, {"batch": 2, "height": 4}, {"batch": 4, "height": 6})
    file = tmp_path_factory.mktemp("small") / "small.onnx"
    write_graph(component.module, graph, file, component.traced)
    return component, file


@pytest.mark.slow
def test_the_profile_runs_from_one_to_the_largest_batch_at_one_size(small: tuple[Component, Path]) -> None:
    assert profile_of(small[0]) == {
        "x": ((1, 3, 6, 8), (4, 3, 6, 8), (4, 3, 6, 8)),
        "scale": ((1,), (4,), (4,)),
    }


@rtx
def test_an_engine_is_compiled_without_a_gpu(small: tuple[Component, Path], tmp_path: Path) -> None:
    component, file = small
    report = compile_engine("tensorrt_rtx", component, file, tmp_path / "small.engine", BuildOptions())
    assert report.engine_bytes == (tmp_path / "small.engine").stat().st_size > 1000
    assert report.seconds > 0
    assert report.layers > 3
    assert built_by("tensorrt_rtx", BuildOptions()).version == load_builder("tensorrt_rtx").__version__


@rtx
def test_an_engine_is_compiled_for_the_capabilities_named(small: tuple[Component, Path], tmp_path: Path) -> None:
    component, file = small
    options = BuildOptions(capabilities=("8.9", "12.0"))
    compile_engine("tensorrt_rtx", component, file, tmp_path / "small.engine", options)
    assert built_by("tensorrt_rtx", options).capabilities == ("8.9", "12.0")
    with pytest.raises(InvalidRequest, match=r"compiles for .*8\.9.*, not 5\.0"):
        compile_engine("tensorrt_rtx", component, file, tmp_path / "x", BuildOptions(capabilities=("5.0",)))


@rtx
def test_what_is_no_graph_is_told_in_tensorrt_s_words(small: tuple[Component, Path], tmp_path: Path) -> None:
    (tmp_path / "small.onnx").write_bytes(b"nothing like it")
    with pytest.raises(BuildFailed, match=r"does not take small\.onnx"):
        compile_engine("tensorrt_rtx", small[0], tmp_path / "small.onnx", tmp_path / "x", BuildOptions())
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(bool(importlib.util.find_spec("tensorrt")), reason="tensorrt is installed")
def test_a_missing_builder_names_its_extra() -> None:
    with pytest.raises(MissingExtra, match=r"\[tensorrt\] extra"):
        load_builder("tensorrt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_what_needs_a_gpu_is_refused_without_one() -> None:
    with pytest.raises(InvalidRequest, match="none here"):
        check_options("tensorrt", BuildOptions())
    with pytest.raises(InvalidRequest, match="strips weights only"):
        check_options("tensorrt_rtx", BuildOptions(strip_weights=True))


def test_options_a_builder_does_not_have_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no hardware compatibility"):
        check_options("tensorrt_rtx", BuildOptions(hardware_compatible=True))

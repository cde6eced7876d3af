"""The OpenVINO backend around its networks: devices, dtypes, errors, and what it leaves of a checkpoint in memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from model.backends.openvino import OpenVinoGraph, openvino_device
from model.denoiser import CpuThreads
from model.errors import CheckpointError, InvalidRequest, MissingExtra
from model.memory.compute import decoder_flops, denoiser_flops
from model.presets import preset
from model.shapes import LatentShape
from model.tasks import task
from model.unet import build_unet
from model.vae import build_vae
from model.weights import release_weights
from serving.engine.settings import EngineSettings


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))


def doubling(folder: Path, dtype: int = TensorProto.FLOAT) -> Path:
    """The graph y = x + x for x of [rows, 2]."""
    value = {name: helper.make_tensor_value_info(name, dtype, ["rows", 2]) for name in ("x", "y")}
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [value["x"]], [value["y"]])
    file = folder / "doubling.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), file)
    return file


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cpu", "CPU"), ("auto", "CPU"), ("xpu", "GPU"), ("xpu:1", "GPU.1"), ("npu", "NPU"), ("npu:1", "CPU")],
)
def test_devices_have_torchs_names(name: str, expected: str) -> None:
    assert openvino_device(name) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_a_graph_runs_in_its_own_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    names = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16, torch.int64: TensorProto.INT64}
    graph = OpenVinoGraph(doubling(tmp_path, names[dtype]), "CPU", CpuThreads(1))
    x = torch.tensor([[1, 2], [3, 4], [5, 6]])
    y = graph.run({"x": x.to(torch.float64)}, (3, 2))
    assert y.dtype == graph.dtype == dtype
    assert torch.equal(y, (2 * x).to(dtype))


def test_more_calls_than_streams_keep_their_order(tmp_path: Path) -> None:
    graph = OpenVinoGraph(doubling(tmp_path), "CPU", CpuThreads(2), one_slot=True)
    outputs = graph.run_each([{"x": torch.tensor([[n, -n]])} for n in range(5)], (1, 2))
    assert [y.tolist() for y in outputs] == [[[2.0 * n, -2.0 * n]] for n in range(5)]


def test_what_the_graph_lacks_is_left_out_only_where_it_is_empty(tmp_path: Path) -> None:
    graph = OpenVinoGraph(doubling(tmp_path), "CPU", CpuThreads(1))
    x = torch.ones(1, 2)
    assert graph.run({"x": x, "concat": torch.empty(1, 0)}, (1, 2)).tolist() == [[2.0, 2.0]]
    with pytest.raises(InvalidRequest, match="no input 'concat'"):
        graph.run({"x": x, "concat": x}, (1, 2))
    with pytest.raises(InvalidRequest, match=r"takes x of \(None, 2\), not \(1, 3\)"):
        graph.run({"x": torch.ones(1, 3)}, (1, 3))


def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"sees no GPU\.7 here, only .*CPU.*--device cpu"):
        OpenVinoGraph(doubling(tmp_path), "GPU.7", CpuThreads(1))


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "unet.onnx").write_bytes(b"nothing like it")
    with pytest.raises(CheckpointError, match="does not load in OpenVINO"):
        OpenVinoGraph(tmp_path / "unet.onnx", "CPU", CpuThreads(1))


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bf16"):
        OpenVinoGraph(doubling(tmp_path, TensorProto.BFLOAT16), "CPU", CpuThreads(1))


def test_without_openvino_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    with pytest.raises(MissingExtra, match=r"\[openvino\] extra"):
        OpenVinoGraph(doubling(tmp_path), "CPU", CpuThreads(1))


def test_released_weights_leave_device_and_dtype() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).to(torch.float16)
    release_weights(network)
    assert sum(weight.numel() for weight in network.parameters()) == 0
    assert {(weight.device.type, weight.dtype) for weight in network.parameters()} == {("cpu", torch.float16)}


@pytest.mark.slow
def test_released_networks_are_counted_as_before() -> None:
    size = preset("tiny")
    unet, vae = build_unet(size, task("image-to-video"), device="meta"), build_vae(size, device="meta")
    latent = LatentShape(size.num_frames, 4, 8, 8)
    before = denoiser_flops(unet, latent), decoder_flops(vae, latent, 2)
    release_weights(unet)
    release_weights(vae.decoder)
    assert (denoiser_flops(unet, latent), decoder_flops(vae, latent, 2)) == before


@pytest.mark.parametrize("device", ["xpu", "xpu:1", "npu"])
def test_intels_devices_are_devices_of_the_engine(device: str) -> None:
    assert EngineSettings(device=device).device == device

"""Every denoiser backend against the plain network in eager torch, at batches and sizes it was not traced at."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor

from model.backends.onnx_export import cache_key, cached_graphs, denoiser_file
from model.backends.onnxruntime import OnnxDenoiser, OnnxGraph
from model.backends.openvino import OpenVinoDenoiser
from model.backends.registry import make_denoiser
from model.checkpoint import Checkpoint, load
from model.denoiser import CpuThreads, Denoiser, DenoiserInputs
from model.errors import CheckpointError, InvalidRequest
from model.optimized.rewrites import relative_difference
from model.presets import UNetSize, preset
from model.sources.layout import cache_folder
from model.tasks import task
from model.testing import build_random

TOLERANCE = {"torch": 1e-5, "torch-compiled": 1e-5, "onnxruntime": 1e-5, "openvino": 1e-5}
"""Largest difference over largest magnitude, float32 on a CPU."""

pytestmark = pytest.mark.timeout(900)  # exporting and compiling take their time on a busy machine


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


SPECK = dataclasses.replace(preset("tiny"), name="speck", unet=UNetSize((32,), (2,), 1, 32), num_frames=3)
"""The tiny preset with one level of its denoiser: half the nodes to trace."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("models") / "speck"
    build_random(folder, SPECK, task("image-to-video"))
    return load(folder)


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint) -> UNetSpatioTemporalConditionModel:
    """The network before anything is rewritten in it."""
    return copy.deepcopy(checkpoint.unet)


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, plain: UNetSpatioTemporalConditionModel, cache: Path) -> Path:
    return denoiser_file(checkpoint, cache)


def told(places: int, height: int = 8, width: int = 8, frames: int = 3) -> DenoiserInputs:
    """Inputs of the denoiser, each place at its own noise level and settings."""
    g = torch.Generator().manual_seed(places)
    return DenoiserInputs(
        torch.randn(places, frames, 4, height, width, generator=g),
        torch.linspace(-1.2, 1.6, places + 1)[1:],
        torch.randn(places, 1, 32, generator=g),
        torch.randn(places, frames, 4, height, width, generator=g),
        torch.tensor([[6.0, 127.0, 0.02], [11.0, 30.0, 0.1], [23.0, 255.0, 0.0]])[:places],
    )


def eager(unet: UNetSpatioTemporalConditionModel, inputs: DenoiserInputs) -> Tensor:
    """The plain network's answer."""
    latents, timestep, context, concat, vector = inputs.as_tuple()
    with torch.inference_mode():
        answer: Tensor = unet(torch.cat([latents, concat], 2), timestep, context, added_time_ids=vector).sample
    return answer


def of_graph(runtime: str, file: Path, cores: CpuThreads) -> Denoiser:
    if runtime == "openvino":
        return OpenVinoDenoiser(file, "CPU", cores)
    return OnnxDenoiser(file, torch.device("cpu"), cores)


@pytest.mark.slow
@pytest.mark.parametrize("places", [1, 2, 3])
@pytest.mark.parametrize(("runtime", "pinned"), [("onnxruntime", False), ("onnxruntime", True), ("openvino", False)])
def test_a_graph_gives_what_torch_gives(
    exported: Path, plain: UNetSpatioTemporalConditionModel, places: int, runtime: str, pinned: bool
) -> None:
    denoiser = of_graph(runtime, exported, CpuThreads(1, pinned))
    inputs = told(places)
    assert relative_difference(denoiser(inputs), eager(plain, inputs)) < TOLERANCE[runtime]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_takes_another_size_than_the_traced(
    exported: Path, plain: UNetSpatioTemporalConditionModel, runtime: str
) -> None:
    denoiser = of_graph(runtime, exported, CpuThreads(1))
    for inputs in (told(2, height=4, width=10), told(1)):
        assert relative_difference(denoiser(inputs), eager(plain, inputs)) < TOLERANCE[runtime]


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "pinned"), [("onnxruntime", True), ("openvino", False), ("openvino", True)])
def test_slots_do_not_depend_on_the_batch(exported: Path, runtime: str, pinned: bool) -> None:
    denoiser = of_graph(runtime, exported, CpuThreads(2, pinned))
    inputs = told(3)
    together = denoiser(inputs)
    for place in range(3):
        alone = denoiser(inputs.index(slice(place, place + 1)))
        assert torch.equal(together[place], alone[0])
    assert torch.equal(denoiser(inputs.index(torch.tensor([2, 0])))[1], together[0])


def test_torch_gives_what_the_plain_network_gives(
    checkpoint: Checkpoint, plain: UNetSpatioTemporalConditionModel
) -> None:
    denoiser = make_denoiser("torch", checkpoint, CpuThreads(1))
    for places in (1, 2, 3):
        inputs = told(places)
        assert relative_difference(denoiser(inputs), eager(plain, inputs)) < TOLERANCE["torch"]


@pytest.mark.slow
def test_the_second_use_exports_nothing(checkpoint: Checkpoint, exported: Path, cache: Path) -> None:
    before = exported.stat().st_mtime_ns
    assert denoiser_file(checkpoint, cache) == exported
    assert exported.stat().st_mtime_ns == before
    key = cache_key(checkpoint.entry, checkpoint.unet.dtype)
    assert [path.name for path in (cache / "denoisers").iterdir()] == [key]
    assert cached_graphs(checkpoint.entry, torch.float32, cache) == ("unet",)
    assert cached_graphs(checkpoint.entry, torch.float16, cache) == ()


def test_an_export_that_fails_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "denoisers").write_text("a file where the folder should be")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        denoiser_file(checkpoint, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["denoisers"]


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STILLMOTION_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "stillmotion"
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"


@pytest.mark.slow
def test_the_file_names_no_folder_of_this_machine(exported: Path, root: Path) -> None:
    data = exported.read_bytes()
    assert str(root).encode() not in data
    assert b"site-packages" not in data


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_wrong_number_of_frames_is_refused(exported: Path, runtime: str) -> None:
    denoiser = of_graph(runtime, exported, CpuThreads(1))
    latents, timestep, context, concat, vector = told(1).as_tuple()
    with pytest.raises(InvalidRequest, match="takes latents of"):
        denoiser(DenoiserInputs(latents[:, :2], timestep, context, concat[:, :2], vector))


def test_a_file_that_is_no_graph_is_told(tmp_path: Path) -> None:
    (tmp_path / "unet.onnx").write_bytes(b"nothing like it")
    with pytest.raises(CheckpointError, match="does not load in onnxruntime"):
        OnnxGraph(tmp_path / "unet.onnx", torch.device("cpu"), CpuThreads(1))


@pytest.mark.slow
def test_cuda_without_its_provider_is_told(exported: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    with pytest.raises(InvalidRequest, match="onnxruntime-gpu"):
        OnnxGraph(exported, torch.device("cuda"), CpuThreads(1))


def test_an_unknown_backend_is_told_with_the_known(checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidRequest, match="torch, torch-compiled, torch-graphed, onnxruntime, openvino"):
        make_denoiser("abacus", checkpoint)


def test_a_missing_compiler_is_told(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidRequest, match=r"g\+\+ or clang\+\+.*--denoiser torch") as caught:
        make_denoiser("torch-compiled", checkpoint)
    assert caught.value.code == "missing_compiler"


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch's compiler
@pytest.mark.parametrize("backend", ["torch-compiled", "onnxruntime", "openvino"])
def test_the_tiny_preset_too(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    tiny = preset("tiny")
    build_random(tmp_path / "tiny", tiny, task("image-to-video"))
    checkpoint = load(tmp_path / "tiny")
    plain = copy.deepcopy(checkpoint.unet)
    denoiser = make_denoiser(backend, checkpoint, CpuThreads(1))
    for places in (1, 2, 3):
        inputs = told(places, frames=tiny.num_frames)
        assert relative_difference(denoiser(inputs), eager(plain, inputs)) < TOLERANCE[backend]

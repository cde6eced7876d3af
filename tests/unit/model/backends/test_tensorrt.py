"""What the TensorRT denoiser refuses before it reads an engine; running one is in tests/gpu."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.backends import tensorrt
from model.backends.registry import backend_for
from model.backends.tensorrt import TensorRtDenoiser
from model.catalog import ModelEntry
from model.denoiser import DenoiserInputs
from model.errors import CheckpointError, InvalidRequest, MissingExtra
from model.export_manifest import EngineBuild, ExportManifest
from model.tasks import task
from tests.support.cuda import fake_cuda

CPU = torch.device("cpu")
MANIFEST = ExportManifest("mini", "0123", "image-to-video", "tensorrt-rtx", "float16", 64, 64, False, {}, {}, ())


def folder_of(tmp_path: Path, built: EngineBuild | None) -> Path:
    dataclasses.replace(MANIFEST, built=built).write(tmp_path)
    return tmp_path


def test_a_folder_without_engines_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="graphs and no engines"):
        TensorRtDenoiser(folder_of(tmp_path, None), CPU)


@pytest.mark.skipif(bool(importlib.util.find_spec("tensorrt")), reason="tensorrt is installed")
def test_a_missing_runtime_names_its_extra(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"\[tensorrt\]"):
        TensorRtDenoiser(folder_of(tmp_path, EngineBuild("tensorrt", "11.0", ("9.0",), "H100")), CPU)


@pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt_rtx is not installed")
def test_an_engine_of_another_version_or_machine_is_refused(tmp_path: Path) -> None:
    import tensorrt_rtx

    with pytest.raises(CheckpointError, match=r"compiled by tensorrt_rtx 0\.1"):
        TensorRtDenoiser(folder_of(tmp_path, EngineBuild("tensorrt_rtx", "0.1", (), None)), CPU)
    here = str(tensorrt_rtx.__version__)
    with pytest.raises(CheckpointError, match="there is none here"):
        TensorRtDenoiser(folder_of(tmp_path, EngineBuild("tensorrt_rtx", here, (), None)), CPU)


def test_a_checkpoint_has_no_engines(tmp_path: Path) -> None:
    entry = ModelEntry("mini", tmp_path, task("image-to-video"), "0", (14,), 64, 64, 8, {})
    with pytest.raises(InvalidRequest, match="export it with --backend"):
        backend_for(entry, "tensorrt")
    assert backend_for(entry, "auto") == "torch"
    for exported_for, backend in {"onnx": "onnxruntime", "openvino": "openvino"}.items():
        dataclasses.replace(MANIFEST, backend=exported_for).write(tmp_path)
        assert backend_for(dataclasses.replace(entry, exported=True), "auto") == backend


class Context:
    """An execution context that remembers the shapes it was set to."""

    def __init__(self) -> None:
        self.shapes: list[tuple[str, tuple[int, ...]]] = []
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes.append((name, shape))
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        pass

    def set_device_memory(self, address: int, size: int) -> None:
        pass

    def execute_async_v3(self, stream: int) -> None:
        self.runs += 1


class Engine:
    """An engine of our denoiser's five inputs and one output, float32, for up to four slots."""

    device_memory_size_v2 = 64
    names = ("latents", "timestep", "context", "concat", "vector", "out")
    num_io_tensors = len(names)

    def __init__(self) -> None:
        self.contexts: list[Context] = []

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user managed"
        self.contexts.append(Context())
        return self.contexts[-1]

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "output" if name == "out" else "input"

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int], tuple[int], tuple[int]]:
        return (1,), (2,), (4,)


def test_each_shape_has_a_context_and_a_capture_on_the_engine_s_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, engine = fake_cuda(monkeypatch), Engine()
    runtime = SimpleNamespace(
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        TensorIOMode=SimpleNamespace(INPUT="input"),
        **{name: name for name in ("float32", "float16", "bfloat16")},
    )
    monkeypatch.setattr(tensorrt, "fitting_runtime", lambda *_: runtime)
    monkeypatch.setattr(tensorrt, "_deserialised", lambda *_: engine)
    denoiser = TensorRtDenoiser(tmp_path, torch.device("cuda:1"), tensorrt.Scratch(CPU))
    for slots in (2, 1, 2):
        sizes = ((slots, 3, 4, 4, 4), (slots,), (slots, 1, 8), (slots, 3, 4, 4, 4), (slots, 3))
        denoiser(DenoiserInputs(*(torch.zeros(size) for size in sizes)))
    assert [{shape[0] for _, shape in context.shapes} for context in engine.contexts] == [{2}, {1}]
    assert [context.runs for context in engine.contexts] == [2, 2]  # before the capture, and in it
    captures = cuda.of("capture")
    assert [current for current, _ in captures] == ["cuda:1"] * 2
    assert {details["capture_error_mode"] for _, details in captures} == {"thread_local"}
    assert [current for current, _ in cuda.of("replay")] == ["cuda:1"] * 3

"""The dtype follows the device, and an engine sets what a GPU's libraries do: without a GPU, torch.cuda is patched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model import platform
from model.backends.registry import resolve_options
from model.backends.wrappers import FixedBatchDenoiser
from model.catalog import ModelEntry
from model.denoiser import BackendOptions, CpuThreads
from model.errors import InvalidRequest
from model.platform import may_have_gpu, resolve_device, resolve_dtype
from model.tasks import task
from serving.engine.settings import EngineSettings


@pytest.fixture(params=[0, 2], ids=["no GPU", "two GPUs"])
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return int(request.param)


def test_auto_is_half_precision_where_there_is_a_gpu_to_run_on(gpus: int) -> None:
    assert EngineSettings().dtype == EngineSettings().device == "auto"
    assert resolve_device("auto") == ("cuda" if gpus else "cpu")
    assert resolve_dtype("auto", "auto") == ("float16" if gpus else "float32")
    assert resolve_dtype("auto", "cpu") == resolve_dtype("auto", "xpu") == resolve_dtype("auto", "npu") == "float32"
    for name in ("float32", "float16", "bfloat16"):
        assert resolve_dtype(name, "auto") == resolve_dtype(name, "cpu") == name


def test_a_gpu_by_its_number_is_half_precision_or_refused(gpus: int) -> None:
    for name in ("cuda", "cuda:1"):
        if gpus:
            assert resolve_dtype("auto", name) == "float16"
        else:
            with pytest.raises(InvalidRequest, match="sees no CUDA device here; take cpu"):
                resolve_dtype("auto", name)
    with pytest.raises(InvalidRequest, match="device cuda:2"):
        resolve_device("cuda:2")


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What is set of torch's libraries, as a fresh process has it; put back afterwards."""
    cudnn = torch.backends.cudnn
    for name, value in (("benchmark", False), ("deterministic", False)):
        monkeypatch.setattr(cudnn, name, value)
    before = (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    yield cudnn
    assert (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before, "TF32 is left as torch has it"


def resolved(device: str, monkeypatch: pytest.MonkeyPatch, *, deterministic: bool = False) -> BackendOptions:
    """The options of a checkpoint whose denoiser is said to be on the device."""
    monkeypatch.setattr("model.optimized.attention.choose", lambda *_, **__: "sdpa")
    monkeypatch.setattr("model.optimized.kernels.choice.choose_kernels", lambda *_, **__: "none")
    config = {"num_attention_heads": (2,), "block_out_channels": (32,)}
    entry = ModelEntry("mini", Any, task("image-to-video"), "0", (14,), 64, 64, 8, {})  # type: ignore[arg-type]
    unet = SimpleNamespace(device=torch.device(device), dtype=torch.float16, config=config)
    checkpoint: Any = SimpleNamespace(entry=entry, unet=unet, latent_channels=4)
    return resolve_options("torch", checkpoint, CpuThreads(1, deterministic), BackendOptions())


def test_an_engine_on_a_gpu_has_its_convolutions_timed(flags: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved("cuda:1", monkeypatch)
    assert flags.benchmark


def test_a_deterministic_engine_times_nothing(flags: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flags.benchmark = True
    resolved("cuda", monkeypatch, deterministic=True)
    assert not flags.benchmark
    flags.benchmark = True
    FixedBatchDenoiser(lambda inputs: inputs.latents, 2)
    assert (flags.benchmark, flags.deterministic) == (False, True)


def test_a_cpu_s_engine_sets_nothing_of_a_gpu_s(flags: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved("cpu", monkeypatch)
    assert (flags.benchmark, flags.deterministic) == (False, False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="device files are Linux'")
def test_without_a_drivers_device_file_the_dtype_is_known_without_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(platform, "_GPU_DRIVERS", (str(tmp_path / "nvidiactl"),))
    assert resolve_dtype("auto", "auto") == "float32"
    assert "torch" not in sys.modules
    (tmp_path / "nvidiactl").touch()
    assert may_have_gpu(), "torch is to be asked"

"""What the TensorRT denoiser refuses before it reads an engine; running one is in tests/gpu."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch

from model.backends.registry import backend_for
from model.backends.tensorrt import TensorRtDenoiser
from model.catalog import ModelEntry
from model.errors import CheckpointError, InvalidRequest, MissingExtra
from model.export_manifest import EngineBuild, ExportManifest
from model.tasks import task

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
    assert backend_for(dataclasses.replace(entry, exported=True), "auto") == "onnxruntime"

"""The TensorRT denoiser on a GPU against torch eager: by tensorrt_rtx where it serves the GPU, else by tensorrt."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from export.onnx import ExportSize
from export.pipeline import Backend, ExportOptions, export_model
from model.backends.registry import make_denoiser
from model.checkpoint import load
from model.denoiser import CpuThreads, DenoiserInputs
from model.optimized.rewrites import relative_difference
from model.presets import preset
from model.sources.source import find
from model.tasks import task
from model.testing import build_random

RTX = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
TOLERANCE = 2e-2
"""Largest difference over largest magnitude: TF32 and another order of sums."""

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def test_an_engine_gives_what_torch_gives_at_every_number_of_places(tmp_path: Path) -> None:
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    backend: Backend = "tensorrt-rtx" if capability in RTX else "tensorrt"
    if not importlib.util.find_spec(backend.replace("-", "_")):
        pytest.skip(f"{backend} is not installed")
    size = preset("tiny")
    entry = build_random(tmp_path / "tiny", size, task("image-to-video"))
    options = ExportOptions(backend, size=ExportSize(size.height, size.width, free=False, max_batch=2))
    export_model(entry, tmp_path / "repository", options)
    device = torch.device("cuda")
    torch_s = make_denoiser("torch", load(entry, device=device), CpuThreads(1))
    engine = make_denoiser("tensorrt", load(find(str(tmp_path / "repository" / "tiny")), device=device), CpuThreads(1))
    for places in (1, 2, 3, 1):  # 3 is more than the engine takes at once; the last replays a captured graph
        g = torch.Generator(device).manual_seed(places)
        inputs = DenoiserInputs(
            *(
                torch.randn(*shape, generator=g, device=device)
                for shape in ((places, 6, 4, 8, 8), (places,), (places, 1, 32), (places, 6, 4, 8, 8), (places, 3))
            )
        )
        assert relative_difference(engine(inputs), torch_s(inputs)) < TOLERANCE

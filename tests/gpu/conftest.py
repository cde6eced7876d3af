"""What the GPU tests share: the device, and a tiny random checkpoint."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from model.catalog import ModelEntry
from model.presets import NoiseRange, preset
from model.tasks import task
from model.testing import build_random


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The first CUDA device."""
    return torch.device("cuda")


@pytest.fixture(scope="session")
def entry(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    """A tiny image-to-video checkpoint with random weights."""
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0))
    return build_random(tmp_path_factory.mktemp("models") / "tiny", sized, task("image-to-video"), seed=5)


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A PNG of 64 x 64."""
    out = BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()

"""The pipeline beside ours: another process, the same numbers, another heap."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.aside import PipelineAside
from benchmarks.pipeline import Pipeline
from model.catalog import describe
from model.presets import preset
from model.tasks import task
from model.testing import build_random

pytestmark = [
    pytest.mark.full,
    # diffusers 0.42 prefers `dtype`, which older releases do not know.
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def test_it_makes_in_a_process_of_its_own_what_is_made_in_this_one(tmp_path: Path) -> None:
    build_random(tmp_path, preset("tiny"), task("image-to-video"))
    entry = describe(tmp_path)
    rough = np.random.default_rng(3).integers(0, 256, (4, 4, 3), np.uint8)
    first, second = (Image.fromarray(part).resize((entry.width, entry.height)) for part in (rough, rough[::-1]))
    params = entry.resolve({"num_inference_steps": 2}, seed=5)
    with PipelineAside(tmp_path, first, kept_memory=True) as aside:
        (child,) = multiprocessing.active_children()
        here = Pipeline(tmp_path, first, "cpu")
        for still in (first, second):
            aside.still = here.still = still
            torch.testing.assert_close(aside.latents(params), here.latents(params), rtol=0, atol=1e-5)
        frames, _ = aside.video(params)
        assert np.abs(frames.astype(int) - here.video(params)[0]).max() <= 1
    assert not child.is_alive()

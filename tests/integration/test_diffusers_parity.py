"""The same seed gives the video that diffusers' StableVideoDiffusionPipeline gives.

Latents within 1e-4, frames at 60 dB or more: two independent implementations on the same weights, for a randomly
initialised model of 4 and of 16 latent channels, and for every shipped image-to-video checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

from model.catalog import ZOO, ModelEntry, describe
from model.presets import NoiseRange, preset
from model.tasks import task
from model.testing import build_random
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.local import generate
from serving.engine.settings import EngineSettings

pytestmark = [
    # diffusers 0.42 meets numpy 2.5 here, and prefers `dtype`, which older releases do not know.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]

SHIPPED = sorted(folder.parent.name for folder in ZOO.glob("*image-to-video/model_index.json"))


@dataclass(frozen=True)
class Pair:
    """One folder, loaded by both."""

    ours: LoadedModel
    theirs: Any


def loaded(folder: Path) -> Pair:
    theirs = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    return Pair(load_model(describe(folder), EngineSettings(device="cpu")), theirs)


@pytest.fixture(scope="module", params=[4, pytest.param(16, marks=pytest.mark.slow)])
def random_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder, tiny = tmp_path_factory.mktemp("random"), preset("tiny")
    sized = replace(tiny, vae=replace(tiny.vae, latent_channels=request.param, scaling_factor=0.18215))
    build_random(folder, sized, task("image-to-video"), seed=request.param)
    return loaded(folder)


@pytest.fixture(scope="module", params=SHIPPED)
def shipped_pair(request: pytest.FixtureRequest) -> Pair:
    return loaded(ZOO / request.param)


def picture(entry: ModelEntry) -> Image.Image:
    """A smooth picture of the model's size: noise through a blur, with an edge across."""
    rough = np.random.default_rng(7).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    still = Image.fromarray(rough).resize((entry.width, entry.height), Image.Resampling.BICUBIC)
    still.paste((250, 200, 20), (entry.width // 3, 0, entry.width // 2, entry.height // 2))
    return still


def png(still: Image.Image) -> bytes:
    out = BytesIO()
    still.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("steps", [3, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("guidance", [(1.0, 3.0), pytest.param((1.0, 1.0), marks=pytest.mark.slow)])
def test_latents_and_frames_are_those_of_diffusers(
    random_pair: Pair, steps: int, guidance: tuple[float, float]
) -> None:
    compare(random_pair, steps, guidance)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_shipped_checkpoint_gives_what_it_gives_in_diffusers(shipped_pair: Pair) -> None:
    compare(shipped_pair, 7, (1.0, 3.0))


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("steps", "guidance"), [(3, (1.0, 3.0)), (3, (1.0, 1.0)), (7, (1.0, 1.0))])
def test_a_shipped_checkpoint_does_so_at_other_settings(
    shipped_pair: Pair, steps: int, guidance: tuple[float, float]
) -> None:
    compare(shipped_pair, steps, guidance)


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "chunk"), [(14, 8), (25, 8)])
def test_a_video_in_diffusers_chunks_is_that_of_diffusers(frames: int, chunk: int, tmp_path: Path) -> None:
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0), height=32, width=48)
    build_random(tmp_path, sized, task("image-to-video"), num_frames=frames)
    pair = loaded(tmp_path)
    settings = EngineSettings(device="cpu", decode_chunk_plan="diffusers")
    compare(Pair(load_model(describe(tmp_path), settings), pair.theirs), 3, (1.0, 3.0), chunk)


def compare(pair: Pair, steps: int, guidance: tuple[float, float], chunk: int | None = None) -> None:
    entry = pair.ours.entry
    frames = entry.num_frames[0]
    chunk = chunk or next(size for size in range(7, 0, -1) if frames % size == 0)
    asked = {
        "fps": 11,
        "motion_bucket_id": 90,
        "noise_aug_strength": 0.05,
        "min_guidance_scale": guidance[0],
        "max_guidance_scale": guidance[1],
        "num_inference_steps": steps,
        "decode_chunk_size": chunk,
        "solver": "euler",
        "schedule": "karras",
    }
    still = picture(entry)
    ours = generate(pair.ours, entry.resolve(asked, seed=1234), (png(still),))
    called = {name: asked[name] for name in asked if name not in {"solver", "schedule"}}
    latents: dict[str, torch.Tensor] = {}
    theirs = pair.theirs(
        still,
        height=entry.height,
        width=entry.width,
        num_frames=frames,
        generator=torch.Generator().manual_seed(1234),
        output_type="np",
        callback_on_step_end=lambda _pipe, _step, _time, now: latents.update(now) or {},
        **called,
    ).frames[0]
    assert (ours.latents - latents["latents"][0]).abs().max() < 1e-4
    squared = np.mean((ours.frames / 255.0 - np.round(theirs * 255) / 255.0) ** 2)
    assert 10 * np.log10(1 / max(squared, 1e-12)) >= 60
    assert ours.frames.std() > 1, "a constant video would prove nothing"

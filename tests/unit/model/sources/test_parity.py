"""The same hub id, variant and seed through diffusers' `from_pretrained` and through ours: the same latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from huggingface_hub import constants
from PIL import Image

from model.media.image import to_png
from model.sources.source import find
from serving.engine.loaded_model import load_model
from serving.engine.local import generate
from serving.engine.settings import EngineSettings
from tests.unit.model.sources.support import as_hub_cache, as_variant, published

SIZE = 64
SETTINGS = {"num_inference_steps": 5, "min_guidance_scale": 1.0, "max_guidance_scale": 2.0, "decode_chunk_size": 3}
"""Of two steps, the first would lead from sigma 700 to 0.002, and leave float32's rounding of numbers over 1,000."""


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_fp16_files_of_a_hub_id_give_diffusers_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = as_variant(published(tmp_path / "plain"), tmp_path / "fp16")
    snapshot = as_hub_cache(variant, tmp_path / "hub", "org/svd")
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    still = Image.linear_gradient("L").resize((SIZE, SIZE)).convert("RGB")

    entry = find(f"org/svd@{snapshot.name}")  # a commit, and complete: the hub is not asked
    assert (entry.name, entry.path) == ("svd", snapshot)
    params = entry.resolve({**SETTINGS, "width": SIZE, "height": SIZE, "solver": "euler"}, seed=5)
    ours = generate(load_model(entry, EngineSettings(device="cpu")), params, (to_png(still),)).latents

    theirs = StableVideoDiffusionPipeline.from_pretrained(
        "org/svd", variant="fp16", cache_dir=tmp_path / "hub", revision=snapshot.name, local_files_only=True
    )  # fmt: skip
    theirs.to(torch.float32)  # every part: a dtype that is asked for does not reach transformers' in all versions
    theirs.set_progress_bar_config(disable=True)
    latents = theirs(
        still, height=SIZE, width=SIZE, num_frames=entry.num_frames[0], fps=params.fps, output_type="latent",
        motion_bucket_id=params.motion_bucket_id, noise_aug_strength=params.noise_aug_strength,
        generator=torch.Generator().manual_seed(5), **SETTINGS,
    ).frames[0]  # fmt: skip
    assert latents.std() > 0.1
    assert float((ours - latents).abs().max()) < 1e-4

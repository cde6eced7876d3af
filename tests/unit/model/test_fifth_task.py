"""A fifth task is one entry of the table and its conditioning: built, saved, loaded, conditioned, sampled, exported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from export.onnx import ExportSize, components
from export.pipeline import warm_up_request
from model.backends.registry import make_denoiser
from model.checkpoint import Checkpoint, load
from model.conditioning import image_conditioning
from model.denoiser import CpuThreads
from model.params import ImageToVideoParams
from model.presets import UNetSize, preset
from model.sampling.sampler import prepare_row, sample
from model.tasks import IMAGE_TO_VIDEO, TASKS, task_of
from model.testing import build_random

SPECK = replace(preset("tiny"), name="speck", unet=UNetSize((32,), (2,), 1, 32), num_frames=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardsParams(ImageToVideoParams):
    """As image-to-video has it, and one setting more."""

    elevation: float


def backwards(
    checkpoint: Checkpoint, params: BackwardsParams, pixels: list[Tensor], noise: Tensor
) -> tuple[Tensor, Tensor]:
    """The still upside down, in every frame but the first."""
    context, concat = image_conditioning(checkpoint, params, [one.flip(1) for one in pixels], noise)
    return context, torch.cat([torch.zeros_like(concat[:1]), concat[1:]])


BACKWARDS = replace(
    IMAGE_TO_VIDEO,
    name="backwards",
    params=BackwardsParams,
    vector=("fps", "elevation"),
    conditioning=f"{__name__}:backwards",
    sample_request={"elevation": 3.0},
    diffusers_pipeline=None,
)


def test_a_fifth_task_is_one_entry_and_its_conditioning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, BACKWARDS.name, BACKWARDS)
    entry = build_random(tmp_path / "speck", SPECK, BACKWARDS)
    checkpoint = load(entry)
    params = entry.resolve({"elevation": 5.0, "num_inference_steps": 1}, seed=2)
    assert type(params) is BackwardsParams and task_of(params) is BACKWARDS
    row = prepare_row(checkpoint, params, [Image.new("RGB", (entry.width, entry.height), "teal")])
    (_, conditional) = row.conditions
    assert conditional.vector.tolist() == [6.0, 5.0]
    assert not conditional.concat[0].any() and conditional.concat[1].any()
    done = sample(make_denoiser("torch", checkpoint, CpuThreads(1)), row)
    assert done.done and bool(done.latents.isfinite().all())
    names = [part.name for part in components(checkpoint, ExportSize(entry.height, entry.width))]
    assert names == ["unet", "vae_encoder", "vae_decoder", "image_encoder"]
    assert b'"elevation": 3.0' in warm_up_request(entry)["request"]

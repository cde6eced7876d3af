"""The paper's own recipes, started from published weights in small, through `stillmotion train`'s own function."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline

from model.checkpoint import load
from model.errors import DataError, InvalidRequest
from tests.integration.test_training_road import make_dataset
from tests.unit.training.published_folders import TINY, stable_diffusion, stable_video_diffusion
from training.config import DenoiserConfig
from training.data.excluded_clips import ExcludedClips
from training.memory_plan import inputs_of
from training.objectives.buckets import BucketedExamples
from training.objectives.denoise import DenoiseObjective
from training.overrides import with_overrides
from training.recipes import PUBLISHED
from training.train import build_objective, train

PLAIN = ["runtime.precision=float32", "runtime.checkpointing=false", "runtime.sharding=none"]
SHORT = ["optim.iterations=2", "optim.batch=2", "optim.log_every=1", "optim.checkpoint_every=2"]
SIZE = ["preset=tiny", "height=64", "width=128", "num_frames=5"]
TINY_RUN = [*PLAIN, *SHORT, *SIZE]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset, and a folder of runs in which published weights lie under the recipes' names."""
    torch.manual_seed(0)
    base = tmp_path_factory.mktemp("published")
    data, out = make_dataset(base / "data"), base / "runs"
    stable_diffusion(out / "stable-diffusion-2-1")
    svd = stable_video_diffusion(base / "svd")
    shutil.copytree(svd / "vae", out / "svd-vae")
    shutil.copytree(svd / "image_encoder", out / "openclip-h" / "image_encoder")
    shutil.copytree(svd / "feature_extractor", out / "openclip-h" / "feature_extractor")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(out / "stable-diffusion-2-1" / part, out / "openclip-h" / part)
    return data, out


def checked(data: Path, out: Path, settings: list[str]) -> dict[str, Any]:
    """Run the first stage with temporal layers; returns what its checkpoint tells of itself."""
    told: list[str] = []
    sizes = ["num_frames=6", "buckets.lengths=3"]
    train("video-pretraining-low", data, out, [*TINY_RUN, *sizes, *settings], False, lambda what, *_: told.append(what))
    assert any(line.startswith("6 frames of ") and "% of the iterations" in line for line in told)
    assert any(line.startswith("memory of one process: predicted ") and "measured" in line for line in told)
    folder = out / "video-pretraining-low"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(line["predicted_gib"] > 0 and line["measured_gib"] > 0 for line in lines)
    assert json.loads((folder / "data.json").read_text())["left_out"]["unreadable_clips"] == 0
    assert load(folder / "checkpoint").entry.task.name == "text-to-video"
    sidecar: dict[str, Any] = json.loads((folder / "checkpoint" / "stillmotion.json").read_text())
    return sidecar


@pytest.mark.slow
def test_a_stage_with_temporal_layers_starts_on_stable_diffusion(place: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = place
    everything = [f"{name}={out / 'stable-diffusion-2-1'}" for name in ("init", "vae", "image_encoder")]
    sidecar = checked(data, tmp_path, everything)
    assert sidecar["published_weights"].keys() == {"vae", "image_encoder", "init"}
    assert sidecar["runs"].keys() == {"video-pretraining-low"}


@pytest.mark.full
def test_the_stages_of_the_paper_follow_on_stable_diffusion(place: tuple[Path, Path]) -> None:
    data, out = place
    train("image-pretraining", data, out, TINY_RUN, False, lambda *_: None)
    sidecar = checked(data, out, [])
    assert set(sidecar["runs"]) == {"image-pretraining", "video-pretraining-low"}
    assert sidecar["published_weights"]["vae"]["name"] == "svd-vae"


@pytest.mark.full
def test_image_to_video_goes_on_from_stable_video_diffusion(place: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = place
    svd = out.parent / "svd"
    settings = [*TINY_RUN, *(f"{name}={svd}" for name in ("init", "vae", "image_encoder"))]
    train("image-to-video-14", data, tmp_path, settings, False, lambda *_: None)
    pipeline = StableVideoDiffusionPipeline.from_pretrained(
        tmp_path / "image-to-video-14" / "checkpoint", dtype=torch.float32
    )
    assert pipeline.unet.config.num_frames == 5


@pytest.mark.parametrize(
    ("name", "init"),
    [
        pytest.param("frame-interpolation", "../svd", marks=pytest.mark.slow),
        pytest.param("image-to-video-low", "stable-diffusion-2-1", marks=pytest.mark.slow),
        pytest.param("image-pretraining", "stable-diffusion-2-1", marks=pytest.mark.full),
        pytest.param("text-to-video", "stable-diffusion-2-1", marks=pytest.mark.full),
        pytest.param("image-to-video-25", "../svd", marks=pytest.mark.full),
    ],
)
def test_a_call_is_given_what_the_plan_says(place: tuple[Path, Path], name: str, init: str) -> None:
    data, out = place
    config = with_overrides(PUBLISHED[name](), [*TINY_RUN, f"init={init}"])
    assert isinstance(config, DenoiserConfig) and config.preset == TINY.name
    objective = build_objective(config, data, out / name, lambda *_: None, ExcludedClips())
    assert isinstance(objective, DenoiseObjective) and not isinstance(objective.examples, BucketedExamples)
    row = objective.rows(0)[0]
    wanted = inputs_of(config, 1)
    if row.pictures:  # as many rows of one frame each
        wanted = {what: (5, *shape[1:]) for what, shape in wanted.items()} | {
            what: (5, 1, *wanted[what][2:]) for what in ("noisy", "concat")
        }
    assert {
        "noisy": tuple(row.clean.shape),
        "concat": tuple(row.concat.shape),
        "sigma": (len(row.names),),
        "context": tuple(row.context.shape),
        "vector": tuple(row.vector.shape),
    } == wanted
    objective.enter(0)
    assert objective.backward(0)["loss"] > 0


def test_one_process_has_nothing_to_shard_over(place: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = place
    with pytest.raises(InvalidRequest, match=r"torchrun .*runtime\.sharding=none"):
        train("image-to-video-low", data, out, [*SHORT, *SIZE, "init=../svd"], False, lambda *_: None)
    with pytest.raises(DataError, match=r"stable-diffusion-2-1 does not exist: put or link Stable Diffusion 2\.1"):
        train("image-pretraining", data, tmp_path, TINY_RUN, False, lambda *_: None)

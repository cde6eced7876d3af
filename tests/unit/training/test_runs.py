"""What a recipe names is found, or the message says what to put where."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from model.errors import CheckpointError, DataError
from model.presets import preset
from tests.unit.model.sources.support import as_hub_cache, published
from tests.unit.training.published_folders import stable_diffusion
from training.config import Buckets, DenoiserConfig
from training.initial_weights import published_start
from training.overrides import completed, with_overrides
from training.recipes import PUBLISHED
from training.recipes.image_to_video import mini_image_to_video
from training.runs import PUBLISHED_NAMES, is_run, is_single_file, resolve_source


def test_a_run_comes_before_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    assert resolve_source("weights", tmp_path / "runs", "init") == Path("weights")
    assert resolve_source(str(tmp_path / "weights"), tmp_path / "runs", "init") == tmp_path / "weights"
    (tmp_path / "runs" / "weights").mkdir(parents=True)
    assert resolve_source("weights", tmp_path / "runs", "init") == tmp_path / "runs" / "weights"


def test_what_lies_nowhere_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"svd-vae does not exist: put or link the autoencoder .*--set vae=PATH"):
        resolve_source("svd-vae", tmp_path, "vae")
    with pytest.raises(DataError, match=r"train it first \(stillmotion train mini-vae --out .*--set vae=PATH"):
        resolve_source("mini-vae", tmp_path, "vae")


def test_a_hub_id_is_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of the cache here; Stable Diffusion too, which cannot be served but starts a training."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    video = as_hub_cache(published(tmp_path / "svd"), tmp_path / "hub", "org/svd")
    resolved = resolve_source(f"org/svd@{video.name}", tmp_path / "runs", "init")
    assert resolved == video
    start = published_start(resolved, preset("tiny"))
    assert start.task.name == "image-to-video"
    assert next(start.unet.parameters()).dtype == torch.float32
    pictures = as_hub_cache(stable_diffusion(tmp_path / "sd"), tmp_path / "hub", "org/sd")
    resolved = resolve_source(f"org/sd@{pictures.name}", tmp_path / "runs", "init")
    assert published_start(resolved, preset("tiny")).task.name == "text-to-video"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"org/none is no folder here and not in the cache.*models pull org/none"):
        resolve_source("org/none", tmp_path / "runs", "init")


def test_every_name_in_a_published_recipe_is_explained_or_is_a_recipe() -> None:
    for recipe in PUBLISHED.values():
        config = recipe()
        if not isinstance(config, DenoiserConfig):
            assert config.base in PUBLISHED
            continue
        for name in (config.init, config.vae, config.image_encoder):
            assert name in PUBLISHED_NAMES or name in PUBLISHED


def test_a_run_is_told_from_published_weights(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert not is_run(tmp_path)
    (tmp_path / "config.json").write_text('{"optim": {}}')
    assert is_run(tmp_path)
    (tmp_path / "svd.safetensors").write_bytes(b"")
    assert is_single_file(tmp_path / "svd.safetensors") and not is_single_file(tmp_path)


def test_settings_that_came_later_have_defaults_that_change_nothing() -> None:
    config = dataclasses.replace(mini_image_to_video(), buckets=Buckets(2.0, (4, 8)))
    whole = dataclasses.asdict(config)
    assert completed(config, whole) == whole
    old = whole | {"optim": {name: value for name, value in whole["optim"].items() if name != "method"}}
    del old["most_unreadable"], old["buckets"]
    told = completed(config, old)
    assert told == whole | {"buckets": dataclasses.asdict(Buckets())}
    assert told["optim"]["method"] == "adamw" and "method" not in old["optim"]
    changed = with_overrides(mini_image_to_video(), ["buckets.largest_aspect=2", "buckets.lengths=4,8"])
    assert changed.buckets == Buckets(2.0, (4, 8)) and changed.buckets.on  # type: ignore[union-attr]
    assert not Buckets().on

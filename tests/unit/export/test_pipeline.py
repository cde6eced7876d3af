"""A checkpoint as it is in a model repository: the same version, found again by the folder's configuration."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from export.pipeline import install_checkpoint
from export.triton_config import Instances, check_config, instances_of
from model.catalog import PROFILE, describe
from model.errors import CheckpointError
from model.presets import preset
from model.sources.source import find
from model.tasks import TASKS
from model.testing import build_random
from tests.unit.model.sources.support import as_variant, published, weights_of


def test_the_copy_is_the_checkpoint(tmp_path: Path) -> None:
    entry = build_random(tmp_path / "views", preset("tiny"), TASKS["multi-view"], seed=1)
    (entry.path / PROFILE).write_text("{}")
    made = install_checkpoint(
        entry, tmp_path / "repository", parameters={"threads": "2"}, instances=Instances("KIND_CPU", 2)
    )
    assert (made.served, made.versions) == (1, (1,))
    assert replace(describe(made.folder), path=entry.path) == entry
    assert not (made.folder / "1" / PROFILE).exists()
    config = check_config((made.folder / "config.pbtxt").read_text())
    assert instances_of(config) == Instances("KIND_CPU", 2)
    assert {name: value.string_value for name, value in config.parameters.items()} == {
        "backend": "torch",
        "checkpoint_version": entry.version,
        "label.stable": "1",
        "threads": "2",
    }
    told = json.loads((made.folder / "warmup" / "request").read_text())
    picture = (made.folder / "warmup" / "pictures").read_bytes()
    assert sum(told["parts"]) == len(picture)
    assert entry.resolve(told["params"], seed=0).num_inference_steps == 1


def test_of_published_weights_only_what_is_read_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of a clone of a hub's repository: either precision, a single file and pictures lie beside."""
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    plain = published(tmp_path / "plain")
    clone = as_variant(plain, tmp_path / "svd-clone")
    for name in ("unet", "vae", "image_encoder"):
        shutil.copy(weights_of(plain, name), clone / name)
    (clone / "svd_xt.safetensors").write_bytes(b"not read")
    (clone / "output.gif").write_bytes(b"not read")
    entry = find(str(clone), "float16")
    copy = install_checkpoint(entry, tmp_path / "repository").folder / "1"
    names = sorted(file.relative_to(copy).as_posix() for file in copy.rglob("*.safetensors"))
    assert names == [
        "image_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert describe(copy, "svd-clone", "float16").version == entry.version
    assert describe(copy, "svd-clone", "float32").version == entry.version  # nothing else to choose


def test_an_export_is_in_a_repository_already(tmp_path: Path) -> None:
    entry = build_random(tmp_path / "still", preset("tiny"), TASKS["image-to-video"], seed=1)
    with pytest.raises(CheckpointError, match="already"):
        install_checkpoint(replace(entry, exported=True), tmp_path / "repository")

"""The folder format: what diffusers wrote we read, what we wrote diffusers reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from safetensors.torch import load_file

from model.catalog import SIDECAR, describe, folder_version
from model.checkpoint import load, save
from model.encoders import ImageEncoder
from model.errors import CheckpointError
from model.presets import preset
from model.sources.source import find
from model.tasks import TASKS, task
from model.testing import build_random


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_random(folder, preset("tiny"), task("image-to-video"))
    return folder


def test_what_we_save_diffusers_loads_with_the_same_weights(tiny: Path) -> None:
    pipeline = StableVideoDiffusionPipeline.from_pretrained(tiny, dtype=torch.float32)
    ours = load(tiny)
    assert isinstance(ours.conditioners, ImageEncoder)
    pairs = {"unet": ours.unet, "vae": ours.vae, "image_encoder": ours.conditioners.network}
    for name, network in pairs.items():
        theirs = getattr(pipeline, name).state_dict()
        for key, value in network.state_dict().items():
            assert torch.equal(value, theirs[key]), key


def test_what_diffusers_saves_we_load_without_our_sidecar(tiny: Path, tmp_path: Path) -> None:
    pipeline = StableVideoDiffusionPipeline.from_pretrained(tiny, dtype=torch.float32)
    pipeline.save_pretrained(tmp_path / "theirs")
    entry = describe(tmp_path / "theirs")
    assert (entry.task.name, entry.width, entry.height) == ("image-to-video", 1024, 576)
    assert load(entry).latent_channels == 4


def test_the_noise_range_is_the_scheduler_s(tiny: Path) -> None:
    loaded = load(tiny)
    assert (loaded.noise.sigma_min, loaded.noise.sigma_max) == (0.002, 700.0)


def test_the_version_follows_the_weights(tiny: Path, tmp_path: Path) -> None:
    assert folder_version(tiny) == folder_version(tiny)
    build_random(tmp_path / "other", preset("tiny"), task("image-to-video"), seed=1)
    assert folder_version(tiny) != folder_version(tmp_path / "other")


def test_a_missing_model_is_named_and_the_zoo_listed() -> None:
    with pytest.raises(CheckpointError, match="no model is called 'nothing-like-it'"):
        find("nothing-like-it")


def test_an_incomplete_folder_says_what_is_missing(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "half" / "unet").mkdir(parents=True)
    (tmp_path / "half" / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        describe(tmp_path / "half")


def test_weights_of_another_size_are_refused(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "mixed"
    build_random(other, preset("tiny"), task("image-to-video"))
    config = json.loads((other / "unet" / "config.json").read_text())
    config["block_out_channels"] = [32, 96]
    config["num_attention_heads"] = [2, 6]
    (other / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not load"):
        load(other)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_checkpoint_of_any_task_comes_back_as_it_was_saved(name: str, tmp_path: Path) -> None:
    entry = build_random(tmp_path / "first", preset("tiny"), task(name), seed=2)
    first = load(entry)
    save(
        tmp_path / "second",
        unet=first.unet,
        vae=first.vae,
        conditioners=first.conditioners,
        noise=first.noise,
        sidecar=json.loads((tmp_path / "first" / SIDECAR).read_text()),
        dtype=torch.float32,
    )
    weights = [
        {str(file.relative_to(folder)): load_file(file) for file in folder.rglob("*.safetensors")}
        for folder in (tmp_path / "first", tmp_path / "second")
    ]
    assert weights[0].keys() == weights[1].keys()
    for file, tensors in weights[0].items():
        assert all(torch.equal(tensor, weights[1][file][key]) for key, tensor in tensors.items()), file
    assert load(tmp_path / "second").entry.task == task(name)


def test_the_pieces_are_those_of_the_task(tmp_path: Path) -> None:
    pieces = {}
    for name in TASKS:
        build_random(tmp_path / name, preset("tiny"), task(name))
        pieces[name] = {path.name for path in (tmp_path / name).iterdir()}
    common = {"model_index.json", "stillmotion.json", "unet", "vae", "scheduler"}
    seeing = common | {"image_encoder", "feature_extractor"}
    assert pieces["image-to-video"] == pieces["multi-view"] == seeing
    assert pieces["frame-interpolation"] == seeing | {"conditioning.safetensors"}
    assert pieces["text-to-video"] == common | {"text_encoder", "tokenizer"}


def test_a_checkpoint_of_another_task_is_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "claims")
    sidecar = json.loads((tiny / SIDECAR).read_text())
    (tmp_path / "claims" / SIDECAR).write_text(json.dumps(sidecar | {"task": "multi-view"}))
    with pytest.raises(CheckpointError, match="a checkpoint of another task"):
        load(tmp_path / "claims")


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("frame-interpolation", "conditioning.safetensors"),
        ("frame-interpolation", "feature_extractor/preprocessor_config.json"),
        ("text-to-video", "tokenizer/tokenizer.json"),
        ("text-to-video", "text_encoder/model.safetensors"),
    ],
)
def test_a_missing_piece_is_named(name: str, piece: str, tmp_path: Path) -> None:
    entry = build_random(tmp_path, preset("tiny"), task(name))
    (tmp_path / piece).unlink()
    with pytest.raises(CheckpointError, match=piece.partition("/")[0]):
        load(entry)

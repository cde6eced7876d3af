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


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_the_version_is_of_what_is_loaded_and_of_nothing_else(tiny: Path, tmp_path: Path) -> None:
    version = describe(tiny).version
    strangers = copy_of(tiny, tmp_path / "strangers")
    for name in ("backup.safetensors", "unet/notes.json", "vae/old.safetensors", "safety_checker/config.json",
                 "unet/diffusion_pytorch_model.bin", "loras/a.json"):  # fmt: skip
        (strangers / name).parent.mkdir(exist_ok=True)
        (strangers / name).write_bytes(b"{}")
    weights = "unet/diffusion_pytorch_model"
    shutil.copy(strangers / f"{weights}.safetensors", strangers / f"{weights}.fp16.safetensors")
    assert describe(strangers).version == version
    assert load(strangers).entry.version == version
    with (strangers / f"{weights}.fp16.safetensors").open("ab") as file:
        file.write(b" ")
    assert describe(strangers, precision="float16").version != describe(tiny, precision="float16").version


@pytest.mark.parametrize("name", ["unet", "vae", "image_encoder", "scheduler", "feature_extractor"])
def test_the_version_follows_every_component_through_links(name: str, tiny: Path, tmp_path: Path) -> None:
    build_random(tmp_path / "other", preset("tiny"), task("image-to-video"), seed=3)
    config = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("700.0", "600.0"))
    preprocessor = tmp_path / "other" / "feature_extractor" / "preprocessor_config.json"
    preprocessor.write_text(preprocessor.read_text().replace("0.4", "0.5"))
    versions = set()
    for label, source in (("same", tiny), ("changed", tmp_path / "other")):
        linked = copy_of(tiny, tmp_path / label)
        shutil.rmtree(linked / name)
        (linked / name).symlink_to(source / name)
        versions.add(describe(linked).version)
    assert len(versions) == 2
    assert describe(tiny).version in versions


def test_folders_of_pickles_are_refused_before_they_have_a_version(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "pickles")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="pickle"):
        describe(folder)


def test_the_words_of_a_text_model_count(tmp_path: Path) -> None:
    build_random(tmp_path / "text", preset("tiny"), task("text-to-video"))
    version = describe(tmp_path / "text").version
    (tmp_path / "text" / "tokenizer" / "merges.txt").write_text("a b\n")
    assert describe(tmp_path / "text").version != version


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        ("unet", {"addition_time_embed_dim": 128}),
        ("unet", {"down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"]}),
        ("unet", {"up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockMotion"]}),
        ("vae", {"block_out_channels": [32, 32, 32], "down_block_types": ["DownEncoderBlock2D"] * 3}),
        ("vae", {"block_out_channels": [32] * 5, "down_block_types": ["DownEncoderBlock2D"] * 5}),
        ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"] * 4}),
        ("vae", {"latent_channels": 8}),
        ("vae", {"in_channels": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_network_of_a_shape_that_is_not_served_is_refused_by_name(
    network: str, changes: dict[str, object], tiny: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny, tmp_path / "changed")
    config = folder / network / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(CheckpointError, match=next(iter(changes))) as refused:
        load(folder)
    assert refused.value.code == "wrong_architecture"


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

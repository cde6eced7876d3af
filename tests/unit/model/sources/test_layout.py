"""Each layout gives the same network as diffusers and transformers read from it; what is broken is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

from model.checkpoint import load
from model.errors import CheckpointError
from model.sources.layout import choose_weights, component_files, read_header
from model.sources.source import find
from tests.unit.model.sources.support import NETWORKS, as_shards, as_variant, published, weights_of

KINDS = {
    "unet": UNetSpatioTemporalConditionModel,
    "vae": AutoencoderKLTemporalDecoder,
    "image_encoder": CLIPVisionModelWithProjection,
}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("published") / "plain")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = load(find(str(folder), "float16"), dtype=torch.float32)
    parts = {"unet": checkpoint.unet, "vae": checkpoint.vae, "image_encoder": checkpoint.conditioners.network}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("layout", ["fp16", "sharded", "sharded fp16", "mixed"])
def test_every_layout_gives_the_weights_that_the_libraries_read(plain: Path, tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "layout"
    if layout == "fp16":
        as_variant(plain, folder)
    elif layout == "mixed":  # a denoiser in float32 beside the others in float16, as finetunes have it
        as_variant(plain, folder)
        file = weights_of(folder, "unet")
        save_file(
            {key: value.float() for key, value in load_file(file).items()},
            file.with_name("diffusion_pytorch_model.safetensors"),
            {"format": "pt"},
        )
        file.unlink()
    else:
        as_shards(plain, folder, "fp16" if "fp16" in layout else "")
    ours = weights(folder)
    assert same(ours, weights(plain))
    for name in NETWORKS:
        variant = component_files(folder / name, "float16").variant or None
        theirs = KINDS[name].from_pretrained(folder / name, variant=variant, torch_dtype=torch.float32)
        assert same({key: ours[f"{name}.{key}"] for key in theirs.state_dict()}, theirs.state_dict())


@pytest.mark.parametrize("frames", [9, 14, 60])
def test_a_finetune_s_frame_count_is_its_config_s(plain: Path, tmp_path: Path, frames: int) -> None:
    folder = shutil.copytree(plain, tmp_path / "long")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_frames": frames}))
    entry = find(str(folder))
    assert entry.num_frames == (frames,)
    assert entry.resolve({}, seed=0).num_frames == frames
    assert load(entry).unet.config["num_frames"] == frames


@pytest.mark.parametrize(("precision", "variant"), [("float16", "fp16"), ("float32", ""), ("bfloat16", "")])
def test_the_variant_that_suits_the_dtype_is_taken(precision: str, variant: str) -> None:
    names = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"]
    assert choose_weights(names, precision)[0] == variant  # type: ignore[arg-type]


def test_one_file_is_taken_rather_than_its_shards() -> None:
    names = [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert choose_weights(names, "float32") == ("", ["model.safetensors"])


def test_an_older_name_of_a_shards_variant_is_known() -> None:
    names = ["model-00001-of-00001.fp16.safetensors", "model.safetensors.index.fp16.json"]
    assert choose_weights(names, "float16") == ("fp16", [names[1], names[0]])


def test_a_file_cut_short_is_named(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "short")
    file = weights_of(folder, "unet")
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size - 100)
    with pytest.raises(CheckpointError, match=rf"unet.* was cut short: it has {size - 100} of {size} bytes.*again"):
        load(find(str(folder)))
    file.write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match="no safetensors file, or was cut short"):
        read_header(file)


def test_an_index_that_names_a_missing_shard_is_named(plain: Path, tmp_path: Path) -> None:
    folder = as_shards(plain, tmp_path / "shards")
    next((folder / "unet").glob("*-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match=r"index\.json names .*00002-of-00003\.safetensors, which is not there"):
        find(str(folder))


def test_pickles_are_refused_with_the_remedy(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "pickled")
    file = weights_of(folder, "vae")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"\.bin is a Python pickle.*safe_serialization=True"):
        find(str(folder))
    (tmp_path / "svd.ckpt").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"svd\.ckpt is a Python pickle"):
        find(str(tmp_path / "svd.ckpt"))


def test_a_folder_without_a_network_is_named(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "lacking")
    shutil.rmtree(folder / "image_encoder")
    with pytest.raises(CheckpointError, match=r"lacks the folder image_encoder/.*not complete"):
        find(str(folder))


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("unet/config.json", "{}", r"unet/config\.json is not that of a model served here"),
        ("unet/config.json", "[1]", r"unet/config\.json holds no JSON object"),
        ("model_index.json", "{", r"model_index\.json is not valid JSON"),
        ("stillmotion.json", '{"task": "image-to-video"}', r"stillmotion\.json or unet/config\.json is not that of"),
    ],
)
def test_a_config_of_something_else_is_named(plain: Path, tmp_path: Path, file: str, text: str, what: str) -> None:
    folder = shutil.copytree(plain, tmp_path / "odd")
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=what):
        find(str(folder))


def test_a_weight_that_is_missing_or_strange_is_named(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "other")
    file = weights_of(folder, "unet")
    tensors = load_file(file)
    kept = {key: value for key, value in tensors.items() if key != "conv_in.bias"}
    save_file(kept, file)
    with pytest.raises(CheckpointError, match=r"missing keys: conv_in\.bias"):
        load(find(str(folder)))
    save_file(tensors | {"strange.weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"unexpected keys: strange\.weight"):
        load(find(str(folder)))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("StableDiffusionPipeline", "Stable Diffusion \\(1.x or 2.x\\)"),
        ("WanImageToVideoPipeline", "Wan, a video transformer"),
        ("CogVideoXImageToVideoPipeline", "CogVideoX, a video transformer"),
        ("SomethingElse", "an architecture not known here"),
    ],
)
def test_another_architecture_is_named(tmp_path: Path, kind: str, what: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(CheckpointError, match=f"{what}.*served are Stable Video Diffusion") as error:
        find(str(tmp_path))
    assert error.value.code == "wrong_architecture"

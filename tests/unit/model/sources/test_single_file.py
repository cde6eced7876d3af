"""A single file is adapted once; what it is not is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model.checkpoint import load
from model.errors import CheckpointError
from model.identity import content_sha256
from model.media.image import to_png
from model.presets import preset
from model.sources.layout import HASHED
from model.sources.single_file import size_of
from model.sources.source import available, find
from model.testing import save_single_file
from serving.engine.local import generate
from tests.unit.model.sources.support import as_single_file, published, weights_of


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("published") / "plain")


def test_it_holds_the_folders_weights_in_its_dtype_and_is_named_by_its_hash(plain: Path, tmp_path: Path) -> None:
    file = as_single_file(plain, tmp_path / "svd_mine.safetensors")
    entry = find(str(file))
    assert (entry.name, entry.version) == ("svd_mine", content_sha256(file)[:12])
    for name in ("unet", "vae", "image_encoder"):
        written, original = load_file(weights_of(entry.path, name)), load_file(weights_of(plain, name))
        assert written.keys() == original.keys()
        assert all(torch.equal(written[key], original[key]) for key in original)
        assert {value.dtype for value in written.values()} == {torch.float16}
    read = HASHED.bytes
    again = find(f"short={file}")
    assert (again.name, again.version, again.path) == ("short", entry.version, entry.path)
    assert HASHED.bytes == read
    assert load(again).entry.num_frames == (6,)
    assert [one.name for _, one in available() if one is not None] == ["svd_mine"]


@pytest.mark.slow
def test_stability_s_own_names_make_the_same_video(plain: Path, tmp_path: Path) -> None:
    """svd_xt.safetensors as Stability writes it, against the folder of the same weights."""
    save_single_file(plain, tmp_path / "svd_xt.safetensors", preset("tiny"))
    names = load_file(tmp_path / "svd_xt.safetensors").keys()
    assert "model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q.weight" in names
    entries = find(str(tmp_path / "svd_xt.safetensors")), find(str(plain))
    assert entries[0].name == "svd_xt" and entries[0].version != entries[1].version
    picture = to_png(Image.linear_gradient("L").resize((64, 64)).convert("RGB"))
    fields = {"num_inference_steps": 1, "max_guidance_scale": 1.0, "width": 64, "height": 64, "decode_chunk_size": 6}
    single, folder = (generate(entry, entry.resolve(fields, seed=3), (picture,)).latents for entry in entries)
    assert torch.equal(single, folder)


@pytest.mark.parametrize(("name", "frames"), [("svd", 14), ("svd_xt", 25), ("svd_xt_1_1", 25), ("my-finetune", 25)])
def test_the_frame_count_is_by_the_files_name(name: str, frames: int) -> None:
    header = {
        "unet.conv_in.weight": {"shape": [320, 8, 3, 3]},
        "vae.encoder.conv_in.weight": {"shape": [128, 3, 3, 3]},
    }
    assert size_of(Path(f"{name}.safetensors"), header, "diffusers").num_frames == frames
    assert preset("svd-xt").unet.channels[0] == 320


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm_in.weight"], "a denoiser alone"),
        (["unet.x.temporal_transformer_blocks.0.attn1.to_q.lora_A.weight"], "is a LoRA: give it to --lora"),
        (["cond_stage_model.transformer.x", "model.diffusion_model.input_blocks.0.0.weight"], "Stable Diffusion"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "without layers over time"),
        (["blocks.0.cross_attn.norm_k.weight"], "Wan, a video transformer"),
        (["anything"], "not known here"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, names: list[str], what: str) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=what):
        find(str(tmp_path / "file.safetensors"))


def test_a_file_cut_short_leaves_nothing_behind(plain: Path, tmp_path: Path) -> None:
    file = as_single_file(plain, tmp_path / "svd.safetensors")
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="was cut short"):
        find(str(file))
    assert not list(tmp_path.glob("cache/adapted/*"))

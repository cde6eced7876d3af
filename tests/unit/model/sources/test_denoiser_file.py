"""A denoiser's own file on another checkpoint's rest, as AnimateLCM-SVD-xt is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli.main import app
from model.checkpoint import load
from model.errors import CheckpointError
from model.media.image import to_png
from model.sources.source import available, find
from serving.engine.local import generate
from tests.unit.model.sources.support import published, weights_of


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one size and different weights."""
    root = tmp_path_factory.mktemp("published")
    return published(root / "base"), published(root / "other", seed=1)


def denoiser_of(folder: Path, file: Path) -> Path:
    save_file(load_file(weights_of(folder, "unet")), file, {"format": "pt"})
    return file


@pytest.mark.slow
def test_animatelcm_s_layout_is_served_in_four_unguided_steps(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, other = folders
    file = denoiser_of(other, tmp_path / "AnimateLCM-SVD-xt.safetensors")
    entry = find(f"{base}+{file}")
    assert entry.name == "AnimateLCM-SVD-xt"
    params = entry.resolve({}, seed=1)
    assert (params.solver, params.schedule, params.num_inference_steps, params.guidance_range) == (
        "lcm",
        "lcm",
        4,
        (1.0, 1.0),
    )
    loaded = load(entry)
    theirs = load_file(weights_of(other, "unet"))
    assert all(torch.equal(value, theirs[key].float()) for key, value in loaded.unet.state_dict().items())
    ours = load_file(weights_of(base, "vae"))
    assert all(torch.equal(value, ours[key].float()) for key, value in loaded.vae.state_dict().items())
    picture = to_png(Image.linear_gradient("L").resize((64, 64)).convert("RGB"))
    fields = {"width": 64, "height": 64, "decode_chunk_size": 6, "num_inference_steps": 1}
    video = generate(entry, entry.resolve(fields, seed=3), (picture,))
    assert torch.isfinite(video.latents).all()


def test_its_version_tells_base_and_denoiser_and_it_is_made_once(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, other = folders
    file = denoiser_of(other, tmp_path / "one.safetensors")
    first, again = find(f"{base}+{file}"), find(f"named={base}+{file}")
    assert (again.name, again.version, again.path) == ("named", first.version, first.path)
    assert first.defaults["solver"] == "euler", "only a name with lcm in it has its defaults"
    assert find(f"{other}+{file}").version != first.version
    assert [entry.name for _, entry in available() if entry is not None] == ["one", "one"]
    (first.path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (first.path / "unet" / "diffusion_pytorch_model.safetensors").symlink_to(tmp_path / "gone")
    assert load(find(f"{base}+{file}")).entry.version == first.version


@pytest.mark.parametrize(("change", "said"), [("fewer", "lacks"), ("more", "has not"), ("shape", "in another shape")])
def test_another_network_is_refused_by_the_names_that_differ(
    folders: tuple[Path, Path], tmp_path: Path, change: str, said: str
) -> None:
    weights = load_file(weights_of(folders[1], "unet"))
    if change == "fewer":
        del weights["conv_in.bias"]
    elif change == "more":
        weights["conv_in.scale"] = torch.zeros(1)
    else:
        weights["conv_in.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "lcm.safetensors")
    with pytest.raises(CheckpointError, match=f"{said}.*conv_in"):
        find(f"{folders[0]}+{tmp_path / 'lcm.safetensors'}")
    assert not list(tmp_path.glob("cache/adapted/*"))


def test_check_says_what_a_denoiser_alone_lacks(folders: tuple[Path, Path], tmp_path: Path) -> None:
    file = denoiser_of(folders[1], tmp_path / "AnimateLCM-SVD-xt.safetensors")
    with pytest.raises(CheckpointError, match=r"a denoiser alone.*BASE\+FILE"):
        find(str(file))


@pytest.mark.slow
def test_check_knows_it_with_its_base(folders: tuple[Path, Path], tmp_path: Path) -> None:
    file = denoiser_of(folders[1], tmp_path / "AnimateLCM-SVD-xt.safetensors")
    alone = CliRunner().invoke(app, ["check", str(file)])
    assert alone.exit_code == 1
    assert "BASE+FILE" in alone.output
    both = CliRunner().invoke(app, ["check", f"{folders[0]}+{file}", "--json"])
    assert both.exit_code == 0, both.output
    facts = json.loads(both.stdout)
    assert facts["name"] == "AnimateLCM-SVD-xt" and facts["problems"] == []

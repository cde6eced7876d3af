"""A camera LoRA's whole road on a small scale: trained by its recipe on a checkpoint, then served with it."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from model.catalog import ModelEntry, attach_loras, describe
from model.errors import CheckpointError, DataError
from model.lora.catalog import describe_lora
from model.presets import preset
from model.tasks import task
from model.testing import build_random
from serving.engine.loaded_model import load_model
from serving.engine.local import generate
from serving.engine.settings import EngineSettings
from tests.integration.test_training_road import make_dataset
from training.train import train

pytestmark = pytest.mark.timeout(900)  # seconds; ten on a quiet machine
RECIPE = "mini-camera-lora-horizontal"
SMALL = [
    "preset=tiny",
    "rank=2",
    "optim.iterations=2",
    "optim.log_every=1",
    "optim.checkpoint_every=2",
    "height=64",
    "width=64",
    "num_frames=6",
    "data.clips=2",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    return build_random(tmp_path_factory.mktemp("models") / "tiny", preset("tiny"), task("image-to-video"), seed=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


def quiet(*_: object) -> None:
    """No progress bar."""


@pytest.mark.slow
def test_a_recipe_s_lora_is_served_with_its_base(base: ModelEntry, data: Path, tmp_path: Path) -> None:
    told = [*SMALL, f"base={base.path}"]
    folder = train(RECIPE, data, tmp_path, told, False, quiet)
    path = folder / "lora.safetensors"
    entry = describe_lora(path)
    assert (entry.name, entry.rank, entry.alpha, entry.task) == ("camera-horizontal", 2, 16.0, "image-to-video")
    assert entry.base == f"tiny@{base.version}"
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
    assert len(keys) == 2 * 16
    assert all(key.startswith("unet.") and "temporal_transformer_blocks.0.attn1." in key for key in keys)
    assert not (folder / "checkpoint").exists()

    (offered,) = attach_loras([base], [str(path)])
    model = load_model(offered, EngineSettings(device="cpu", warm_up=False))
    picture = BytesIO()
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(picture, "PNG")

    def video(**asked: object) -> torch.Tensor:
        params = offered.resolve({"num_inference_steps": 1, "max_guidance_scale": 1.0, **asked}, seed=3)
        return generate(model, params, (picture.getvalue(),)).latents

    plain, moved = video(), video(lora="camera-horizontal")
    assert float((moved - plain).abs().max()) > 0
    assert torch.equal(plain, video())

    longer = [one.replace("optim.iterations=2", "optim.iterations=3") for one in told]
    with pytest.raises(DataError, match="already holds a run"):
        train(RECIPE, data, tmp_path, told, False, quiet)
    with pytest.raises(DataError, match="another config"):
        train(RECIPE, data, tmp_path, longer, True, quiet)
    other = build_random(tmp_path / "tiny", preset("tiny"), task("image-to-video"), seed=6)
    with pytest.raises(DataError, match=f"is a run on tiny@{base.version}, and"):
        train(RECIPE, data, tmp_path, [*SMALL, f"base={other.path}"], True, quiet)
    state = json.loads((folder / "base.json").read_text())
    assert state == {"base": f"tiny@{base.version}"}


def test_a_base_of_another_task_size_or_length_is_refused(base: ModelEntry, data: Path, tmp_path: Path) -> None:
    views = build_random(tmp_path / "views", preset("tiny"), task("multi-view"), num_frames=6)
    for told, why in (
        ([f"base={views.path}"], "views is multi-view; camera LoRAs are trained on a checkpoint of image-to-video"),
        ([f"base={base.path}", "num_frames=5"], "makes 6 frames; this recipe has clips of 5"),
        ([f"base={base.path}", "preset=mini"], "is a network of widths"),
    ):
        with pytest.raises(DataError, match=why):
            train(RECIPE, data, tmp_path, [*SMALL, *told], False, quiet)
    with pytest.raises(CheckpointError, match="no model is called 'nowhere'"):
        train(RECIPE, data, tmp_path, [*SMALL, "base=nowhere"], False, quiet)


def test_a_run_beside_it_is_a_base_by_its_own_name(base: ModelEntry, tmp_path: Path) -> None:
    from training.lora import base_entry
    from training.recipes.camera_lora import mini_camera_lora_zoom

    released = tmp_path / "mini-image-to-video-long" / "checkpoint"
    build_random(released, preset("tiny"), task("image-to-video"), seed=5)
    config = replace(mini_camera_lora_zoom(), base="mini-image-to-video-long", num_frames=6)
    found = base_entry(config, tmp_path)
    assert (found.name, found.path) == ("mini-image-to-video-long", released)
    assert describe(released).version == found.version

"""Published weights as starts: the network that trains is the one that lies there, or the start is refused by name."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file

from model.errors import CheckpointError, DataError
from model.presets import preset
from model.tasks import task
from model.testing import build_random
from tests.unit.training.published_folders import TINY, stable_video_diffusion
from training.config import DenoiserConfig
from training.frozen_networks import frozen_text, frozen_vae, frozen_vision
from training.initial_weights import Denoiser, build_network, published_start, unet_of
from training.recipes.published import image_to_video_14


def config(task_name: str, init: Path, size: str = "tiny") -> DenoiserConfig:
    return dataclasses.replace(image_to_video_14(), preset=size, task=task_name, init=str(init), num_frames=3)


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return stable_video_diffusion(tmp_path_factory.mktemp("published") / "svd")


@torch.no_grad()
def test_a_folder_of_stable_video_diffusion_trains_on_from_its_weights(svd: Path, tmp_path: Path) -> None:
    unet = unet_of(build_network(config("image-to-video", svd), tmp_path))
    plain = UNetSpatioTemporalConditionModel.from_pretrained(svd / "unet")
    x = torch.randn(1, 3, 8, 8, 8)
    given = {
        "timestep": torch.tensor([0.3]),
        "encoder_hidden_states": torch.randn(1, 1, 32),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }
    assert torch.allclose(unet(x, **given).sample, plain(x, **given).sample, atol=1e-5)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in unet.parameters())
    views = unet_of(build_network(config("multi-view", svd), tmp_path))
    elevated = given | {"added_time_ids": torch.cat([given["added_time_ids"], torch.tensor([[30.0]])], 1)}
    assert torch.allclose(views(x, **elevated).sample, plain(x, **given).sample, atol=1e-5), "not heeded yet"


def test_another_size_is_refused_by_the_name_of_its_own(svd: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no denoiser of size 'svd': it is of size tiny; .*preset=SIZE"):
        published_start(svd, preset("svd"))
    with pytest.raises(DataError, match="latents of 4 channels, a denoiser of size 'mini' reads 16"):
        frozen_vae(svd, preset("mini"))
    with pytest.raises(DataError, match="of width 32; a denoiser of size 'mini' reads 128"):
        frozen_vision(svd, preset("mini"))
    with pytest.raises(CheckpointError):
        frozen_text(svd, TINY)


def test_another_task_is_refused_by_name(tmp_path: Path) -> None:
    build_random(tmp_path / "views", TINY, task("multi-view"))
    with pytest.raises(DataError, match="of multi-view cannot become one of frame-interpolation"):
        build_network(config("frame-interpolation", tmp_path / "views"), tmp_path)
    (tmp_path / "views" / "stillmotion.json").unlink()
    with pytest.raises(CheckpointError, match="takes 8 channels and a vector of 1024; image-to-video needs 8 and 768"):
        published_start(tmp_path / "views", TINY)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds nothing that a denoiser could start from"):
        published_start(tmp_path / "nothing", TINY)


def test_interpolation_keeps_the_mask_that_its_start_has_learned(tmp_path: Path) -> None:
    build_random(tmp_path / "ends", TINY, task("frame-interpolation"))
    network = build_network(config("frame-interpolation", tmp_path / "ends"), tmp_path)
    mask = load_file(tmp_path / "ends" / "conditioning.safetensors")["mask"]
    assert isinstance(network, Denoiser) and torch.equal(network.mask.detach(), mask)
    assert network.mask.requires_grad


def test_a_folder_that_lacks_a_weight_is_no_start(svd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "svd"
    shutil.copytree(svd, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["down_blocks.0.resnets.0.time_mixer.mix_factor"]
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"missing keys: down_blocks\.0\.resnets\.0\.time_mixer\.mix_factor"):
        published_start(folder, TINY)

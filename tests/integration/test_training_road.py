"""The whole road on a small scale: a dataset folder becomes a checkpoint that the sampler and diffusers both load."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

from model.backends.registry import make_denoiser
from model.catalog import describe
from model.checkpoint import load
from model.errors import DataError, InvalidRequest
from model.media.video import encode_video
from model.sampling.sampler import prepare_row, sample
from model.vae import decode
from training.config import DenoiserConfig
from training.data.orbits import prepare
from training.data.starter import Item
from training.initial_weights import build_network
from training.model_card import CURVE, commands, write_card
from training.overrides import with_overrides
from training.recipes.multi_view import mini_multi_view
from training.train import train

SMALL = ["preset=tiny", "optim.iterations=3", "optim.log_every=1", "optim.checkpoint_every=2"]
VAE = [*SMALL, "optim.batch=4", "phase_batch=4", "skeleton_until=1", "spatial_until=2", "frames=2", "crop=32"]
SIZE = ["height=64", "width=128", "window_until=1", "window_height=32", "window_width=64", "num_frames=6"]
DENOISER = [*SMALL, *SIZE, "copying_start=false", "data.moves=2"]
PROMPTED = [*SMALL, *SIZE, "data.camera_clips=5", "init=mini-image-to-video", "time_only_until=1"]
ENDS = [*SMALL, *SIZE, "num_frames=5", "optim.batch=3", "init=mini-image-to-video"]
ORBITS = [*SMALL, "window_until=3", "window_height=32", "window_width=32", "init=mini-image-to-video"]


def make_dataset(folder: Path) -> Path:
    """Three training shots, a held-out one and a photograph, in the starter dataset's layout."""
    (folder / "shots").mkdir(parents=True)
    (folder / "photos").mkdir()
    items = []
    for index in range(4):
        noise = np.random.default_rng(index).integers(0, 255, (1, 16, 28, 3), dtype=np.uint8)
        frames = np.roll(noise.repeat(16, 1).repeat(16, 2).repeat(26, 0), index, axis=2)
        name, split = f"shot-{index:03d}", "heldout" if index == 3 else "train"
        (folder / "shots" / f"{name}.mp4").write_bytes(encode_video(frames, 24, "mp4"))
        items.append(Item(name, "shot", f"shots/{name}.mp4", "film", index * 2.0, index * 2 + 1.0, 26, 24.0, split))
    picture = np.random.default_rng(9).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).resize((600, 400)).save(folder / "photos" / "one.png")
    items.append(Item("one", "photo", "photos/one.png", "photo", 0, 0, 1, 0.0, "train"))
    write_items(folder, items)
    return folder


def write_items(folder: Path, items: list[Item]) -> None:
    lines = "".join(json.dumps(dataclasses.asdict(item)) + "\n" for item in items)
    (folder / "items.jsonl").write_text(lines)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"name": "test", "items_sha256": digest}))


def quiet(*_: object) -> None:
    """Report nothing."""


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("road")
    data, out = make_dataset(base / "data"), base / "runs"
    train("mini-vae", data, out, VAE, False, quiet)
    train("mini-image-encoder", data, out, [*SMALL, "optim.batch=2"], False, quiet)
    train("mini-image-to-video", data, out, DENOISER, False, quiet)
    return data, out


@pytest.mark.slow
def test_a_run_ends_in_a_checkpoint_of_float16_that_diffusers_loads(road: tuple[Path, Path]) -> None:
    folder = road[1] / "mini-image-to-video" / "checkpoint"
    assert load(folder, dtype=torch.float16).unet.dtype == torch.float16
    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    assert pipeline.unet.config.num_frames == 6
    sidecar = json.loads((folder / "stillmotion.json").read_text())
    assert {name: record["iterations"] for name, record in sidecar["runs"].items()} == {
        "mini-vae": 3,
        "mini-image-encoder": 3,
        "mini-image-to-video": 3,
    }
    assert sidecar["motion_map"]["reference_bucket"] == 128.0


def checked(folder: Path, task: str, params: dict[str, object], pictures: list[str]) -> np.ndarray:
    """A clip sampled from a checkpoint: [T, H, W, 3]."""
    checkpoint = load(folder)
    assert checkpoint.entry.task.name == task
    settings = checkpoint.entry.resolve({"num_inference_steps": 2, **params}, seed=1)
    stills = [Image.new("RGB", (settings.width, settings.height), colour) for colour in pictures]
    row = sample(make_denoiser("torch", checkpoint), prepare_row(checkpoint, settings, stills))
    return decode(checkpoint.vae, row.latents, 7)


@pytest.mark.slow
def test_pictures_then_clips_then_prompts(road: tuple[Path, Path]) -> None:
    train("mini-image", *road, PROMPTED, False, quiet)
    train("mini-video", *road, [*PROMPTED, "init=mini-image", "data.image_share=0.5"], False, quiet)
    train("mini-text-to-video", *road, [*PROMPTED, "init=mini-video", "data.motions=pan left,still"], False, quiet)
    assert list((road[1] / "cache").glob("camera-pan_left-still*")), "the motions asked for, and they alone"
    folder = road[1] / "mini-text-to-video" / "checkpoint"
    assert checked(folder, "text-to-video", {"prompt": "pan left"}, []).shape == (6, 64, 128, 3)
    runs = json.loads((folder / "stillmotion.json").read_text())["runs"]
    assert list(runs)[-3:] == ["mini-image", "mini-video", "mini-text-to-video"], "all that the weights went through"
    train("mini-image-to-video-chained", *road, [*DENOISER, "init=mini-text-to-video"], False, quiet)
    chained = road[1] / "mini-image-to-video-chained" / "checkpoint"
    assert checked(chained, "image-to-video", {}, ["red"]).shape == (6, 64, 128, 3)


@pytest.mark.slow
def test_interpolation_learns_its_mask(road: tuple[Path, Path]) -> None:
    train("mini-frame-interpolation", *road, ENDS, False, quiet)
    folder = road[1] / "mini-frame-interpolation" / "checkpoint"
    mask = load(folder).conditioners.mask  # type: ignore[union-attr]
    assert mask.abs().max() > 0
    assert checked(folder, "frame-interpolation", {}, ["red", "blue"]).shape == (5, 64, 128, 3)
    started = [setting for setting in ENDS if not setting.startswith("init=")]
    started += [f"init={folder}", f"vae={folder}"]
    train("mini-frame-interpolation-long", *road, started, False, quiet)
    further = road[1] / "mini-frame-interpolation-long" / "checkpoint"
    runs = json.loads((further / "stillmotion.json").read_text())["runs"]
    assert list(runs)[-2:] == ["mini-frame-interpolation", "mini-frame-interpolation-long"], (
        "what its start went through"
    )
    assert "train mini-frame-interpolation-long --data data/starter --out runs --set" in commands(runs)
    with Image.open(folder / CURVE) as before, Image.open(further / CURVE) as after:
        assert after.height > before.height


@pytest.mark.slow
def test_multi_view_learns_from_rendered_orbits(road: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("pybullet")
    prepare(tmp_path / "orbits", objects=1)
    train("mini-multi-view-low", tmp_path / "orbits", road[1], ORBITS, False, quiet)
    train("mini-decoder-orbits", tmp_path / "orbits", road[1], [*SMALL, "optim.batch=1"], False, quiet)
    whole = [setting for setting in ORBITS if not setting.startswith("init=")] + ["init=mini-multi-view-low"]
    train("mini-multi-view", tmp_path / "orbits", road[1], whole, False, quiet)
    folder = road[1] / "mini-multi-view" / "checkpoint"
    assert checked(folder, "multi-view", {"elevation": 20.0}, ["red"]).shape == (21, 128, 128, 3)
    figures: dict[str, Any] = {"settings": {"limit": None}, "figures": {}, "protocol": {}, "protocol_hash": "abc123"}
    text = write_card(describe(folder, "mini-multi-view"), figures).read_text()
    assert "stillmotion data multi-view --out data/multi-view" in text
    assert "stillmotion train mini-multi-view --data data/multi-view --out runs" in text
    assert "zlib" in text


@pytest.mark.slow
def test_a_start_of_another_size_or_from_another_kind_of_run_is_refused(road: tuple[Path, Path]) -> None:
    other_size = with_overrides(mini_multi_view(), [*ORBITS, "preset=mini"])
    other_kind = with_overrides(mini_multi_view(), [*ORBITS, "init=mini-vae"])
    for config in (other_size, other_kind):
        assert isinstance(config, DenoiserConfig)
        with pytest.raises(DataError, match="cannot start from it"):
            build_network(config, road[1])


@pytest.mark.slow
def test_the_card_holds_the_figures_the_licences_and_the_curves(road: tuple[Path, Path]) -> None:
    entry = describe(road[1] / "mini-image-to-video" / "checkpoint", "mini-image-to-video")
    figures = {
        "settings": {"steps": 3, "limit": 7},
        "figures": {"frechet": {"model": 1.25, "still": 2.5}},
        "protocol": {},
        "protocol_hash": "abc123",
    }
    text = write_card(entry, figures).read_text()
    assert "stillmotion eval mini-image-to-video --data data/starter --limit 7 --card" in text
    assert "abc123" in text
    assert "| frechet / model | 1.25 |" in text
    assert "Blender Foundation" in text and "CC-BY-3.0" in text
    assert (entry.path / "training-curve.png").stat().st_size > 1000
    assert json.loads((entry.path / "metrics.json").read_text()) == figures


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten(road: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match="--resume"):
        train("mini-vae", *road, VAE, False, quiet)


def test_an_unknown_recipe_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="mini-vae"):
        train("maxi-vae", tmp_path, tmp_path, [], False, quiet)


def test_a_dataset_that_trains_on_held_out_footage_is_refused(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    items = [Item(**json.loads(line)) for line in (data / "items.jsonl").read_text().splitlines()]
    overlapping = dataclasses.replace(items[0], start_s=6.5, end_s=7.5)
    write_items(data, [overlapping, *items[1:]])
    with pytest.raises(DataError) as caught:
        train("mini-vae", data, tmp_path / "runs", VAE, False, quiet)
    assert caught.value.code == "held_out"


def test_a_changed_dataset_is_refused(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    (data / "items.jsonl").write_text((data / "items.jsonl").read_text().replace('"heldout"', '"train"'))
    with pytest.raises(DataError, match="was changed"):
        train("mini-vae", data, tmp_path / "runs", VAE, False, quiet)

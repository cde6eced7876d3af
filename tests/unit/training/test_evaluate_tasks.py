"""Evaluations of the other three tasks, of random tiny checkpoints: complete, against their baselines, JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from model.catalog import ModelEntry
from model.presets import preset
from model.tasks import TASKS
from model.testing import build_random
from tests.unit.training.test_evaluate import dataset as dataset
from training.data.camera import MOTIONS
from training.data.orbits import Orbit, OrbitItem
from training.evaluate import EvalSettings, evaluate, protocol_hash
from training.metrics import multi_view
from training.metrics.baselines import blend
from training.metrics.image import psnr, ssim
from training.metrics.inputs import RealClip
from training.metrics.interpolation import between
from training.metrics.prompted import obeyed
from training.metrics.temporal import flicker, warp_error

Frames = np.ndarray[Any, np.dtype[np.uint8]]


def checkpoint(folder: Path, task: str, frames: int) -> ModelEntry:
    return build_random(folder, preset("tiny"), TASKS[task], num_frames=frames)


def measured(entry: ModelEntry, data: Path, work: Path, limit: int) -> dict[str, Any]:
    found = evaluate(
        entry, data, limit, settings=EvalSettings(steps=1, work=work, interpolator=blend, page=work / "page")
    )
    check_page(work / "page", found)
    assert set(found["figures"]) == set(found["protocol"])
    assert found["protocol_hash"] == protocol_hash(found["protocol"])
    loss = found["figures"]["validation_loss"]["by_sigma"]
    assert len(loss) == 4
    assert all(value > 0 for value in loss.values())
    return dict(json.loads(json.dumps(found, allow_nan=False))["figures"])


def check_page(folder: Path, found: dict[str, Any]) -> None:
    """Every figure is told, and every clip the page names is there and plays."""
    text = (folder / "index.html").read_text()
    assert found["protocol_hash"] in text
    assert all(name in text for name in found["protocol"])
    named = re.findall(r"src='(clips/[^']+\.mp4)'", text)
    assert named
    assert {folder / one for one in named} == set((folder / "clips").iterdir())
    with av.open(str(folder / named[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 5


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_frame_interpolation(dataset: Path, tmp_path: Path) -> None:
    figure = measured(checkpoint(tmp_path / "c", "frame-interpolation", 5), dataset, tmp_path, 4)["between_psnr_db"]
    assert figure["clips"] == 4
    assert figure["beats_blending_fast"] is False, "random weights"
    assert figure["blending"] > figure["model"]
    assert figure["model_minus_blending_fast_interval"][1] < 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_text_to_video(dataset: Path, tmp_path: Path) -> None:
    figures = measured(checkpoint(tmp_path / "c", "text-to-video", 6), dataset, tmp_path, 2)
    assert figures["camera"]["clips"] == 2 * len(MOTIONS)
    assert set(figures["camera"]["by_motion"]) == set(MOTIONS)
    assert figures["camera"]["rendered"] >= 0.8, "real camera moves are told apart"
    assert figures["caption"]["clips"] == 2 * len(MOTIONS)


def drawn(shape: tuple[int, ...], seed: int) -> Frames:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def test_views_are_compared_with_repeating_the_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(one: Frames, other: Frames) -> float:
        return float(np.abs(one.astype(float) - other).mean())

    monkeypatch.setattr(multi_view, "stlpips", apart)  # its weights are fetched; the comparison is what is tested here
    orbits = []
    for number in (7, 15):
        for elevation in (5.0, 25.0):
            name = f"object-{number}-{elevation}"
            orbits.append(Orbit(OrbitItem(name, number, elevation, "", "", "heldout"), drawn((5, 32, 32, 3), number)))
    good = multi_view.views(orbits, [np.clip(one.views.astype(int) + 9, 0, 255).astype(np.uint8) for one in orbits])
    bad = multi_view.views(orbits, [drawn((5, 32, 32, 3), 99) for _ in orbits])
    assert [good[name]["beats_repeating"] for name in good] == [True] * 3
    assert good["views_psnr_db"]["model_minus_repeating_interval"][0] > 0
    assert good["views_stlpips"]["model_minus_repeating_interval"][1] < 0
    assert {"model_at_5", "model_at_25", "repeating_at_5"} <= set(bad["views_psnr_db"])
    assert (good["views_psnr_db"]["orbits"], good["views_psnr_db"]["objects"]) == (4, 2)
    assert bad["views_psnr_db"]["model"] < good["views_psnr_db"]["model"]


def test_frames_between_are_compared_with_blending() -> None:
    clips = [drawn((5, 16, 16, 3), seed) for seed in range(6)]
    real = [RealClip(f"s/{k}", f"s{k}", clip, 12.0, 0.1 * k, 100) for k, clip in enumerate(clips)]
    faded = [blend(clip) for clip in clips]
    perfect = between(real, {"model": clips, "blending": faded, "autoencoder": clips}, psnr)
    assert perfect["beats_blending_fast"] is True
    assert perfect["model_fast"] == perfect["autoencoder_fast"] == 100.0
    assert between(real, {"model": clips, "blending": faded}, ssim)["model"] == 1.0
    faded = between(real, {"model": faded, "blending": faded}, psnr)
    assert faded["model"] == faded["blending"]
    assert faded["model_minus_blending_fast_interval"] == (0.0, 0.0)


def test_a_blend_keeps_its_ends_and_is_even() -> None:
    clip = np.zeros((5, 2, 2, 3), np.uint8)
    clip[-1] = 200
    assert blend(clip)[:, 0, 0, 0].tolist() == [0, 50, 100, 150, 200]


def test_directions_are_counted_by_motion() -> None:
    named = np.array([list(MOTIONS), ["still"] * 5])
    figure = obeyed(named)
    assert figure["model"] == pytest.approx(6 / 10)
    assert figure["by_motion"]["still"] == 1.0
    assert figure["by_motion"]["zoom in"] == 0.5


def test_a_pan_is_steady_and_flicker_is_not() -> None:
    wide = np.asarray(Image.fromarray(drawn((12, 24, 3), 1)).resize((160, 64), Image.Resampling.BICUBIC))
    pan = np.stack([wide[:, 2 * t : 2 * t + 96] for t in range(6)])
    lit = np.clip(pan.astype(int) + 30 * (np.arange(6) % 2)[:, None, None, None], 0, 255).astype(np.uint8)
    assert warp_error(pan) < 4 < warp_error(lit)
    assert flicker(pan) < 4 < flicker(lit)
    assert warp_error(pan) < float(np.abs(np.diff(pan.astype(float), axis=0)).mean())
